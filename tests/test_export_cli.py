"""`haq export` from end to end on a user's own small space, and what it says to wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from test_cli import Haq
from test_finetune_cli import config, haq, space

__all__ = ["config", "haq", "space"]  # fixtures


@pytest.fixture
def mixed(config: Path) -> Path:
    raw = json.loads(config.read_text())
    raw["layers"] = {"0": "int8/int8", "3": "int4/int8", "7": "fp16/fp16"}
    config.write_text(json.dumps(raw))
    return config


def test_a_config_is_exported_and_the_report_says_what_was_lost(
    haq: Haq, space: Path, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folder" / "net.onnx"
    ran = haq("export", mixed, "--format", "onnx-qdq", "--out", out, "--space", space)
    assert ran.code == 0, ran.err
    assert "all 3 layers are as asked" in ran.out
    assert f"wrote {out}" in ran.out
    assert {t.name for t in onnx.load(str(out)).graph.initializer} >= {"0.weight", "3.weight", "7.weight"}
    ran = haq("export", mixed, "-f", "onnx-qdq", "-o", out, "-s", space, "--flavour", "tensorrt")
    assert ran.code == 0, ran.err
    assert "of 3 layers are not quite as asked" in ran.out
    (line,) = (line for line in ran.out.splitlines() if line.split()[:1] == ["3"])
    assert line.split()[1:3] == ["int4/int8", "int8/int8"]
    assert "4-bit weights are for matrix products only" in line


def test_json_is_the_report_and_the_exported_config_loads_its_own_numbers(
    haq: Haq, space: Path, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    ran = haq("export", mixed, "-f", "json", "-o", out, "-s", space, "--json")
    report = json.loads(ran.out)
    assert report["format"] == "json"
    assert report["layers"][1] == {"layer": "3", "asked": "int4/int8", "written": "int4/int8", "note": ""}
    assert report["files"] == [str(out), str(out.with_suffix(".safetensors"))]
    # From the numbers beside it: the same file as from the config.
    for source, target in ((mixed, "a.onnx"), (out, "b.onnx")):
        assert haq("export", source, "-f", "onnx-qdq", "-o", tmp_path / target, "-s", space).code == 0
    a, b = (onnx.load(str(tmp_path / name)) for name in ("a.onnx", "b.onnx"))
    assert a.graph == b.graph
    out.with_suffix(".safetensors").write_bytes(b"torn")
    assert "cannot be read" in haq.error("export", out, "-f", "json", "-o", tmp_path / "again.json", "-s", space)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-f", "onxx", "-o", "a.onnx"), "unknown format; got 'onxx'"),
        (("-f", "onnx-qdq", "-o", "a.json"), ".onnx"),
        (("-f", "onnx-qdq", "-o", "a.onnx", "--flavour", "gpu"), "unknown flavour"),
        (("-f", "json", "-o", "a.json", "--flavour", "cpu"), "no such option"),
        (("-f", "json"), "--out"),
    ],
)
def test_wrong_flags_are_one_line(haq: Haq, space: Path, mixed: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in haq.error("export", mixed, "-s", space, *flags)


def test_a_config_of_other_weights_is_refused_with_both_hashes(haq: Haq, space: Path, mixed: Path) -> None:
    raw = json.loads(mixed.read_text())
    own, raw["model"]["weights_hash"] = raw["model"]["weights_hash"], "0" * 64
    mixed.write_text(json.dumps(raw))
    message = haq.error("export", mixed, "-s", space, "-f", "json", "-o", "a.json")
    assert own in message
    assert "0" * 64 in message


def test_code_never_comes_from_what_a_config_names(haq: Haq, mixed: Path) -> None:
    assert "--space" in haq.error("export", mixed, "-f", "json", "-o", "a.json")
