"""`haq front`, `pick` and `report` on a run directory that was written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haq.accuracy import Scores, compare
from haq.candidate import Candidate, TargetResult
from haq.cli import main
from haq.history import SEARCH, VALIDATION, Baseline
from haq.precision import Assignment, Precision
from haq.rundir import RunRequest, open_run
from haq.spec import spec_from

LAYERS = ("a", "b")
REFERENCE: Scores = np.array([1.0] * 96 + [0.0] * 4)
TARGETS = ("tpu-v4", "a100")


def executed(bits: tuple[int, int]) -> Assignment:
    meaning = {4: "int4/int8", 8: "int8", 16: "fp16", 32: "fp32"}
    return Assignment.of({layer: Precision.parse(meaning[b]) for layer, b in zip(LAYERS, bits, strict=True)})


def costs(bits: tuple[int, int]) -> dict[str, float]:
    """1 MB per 8 bits, 1 ms per 32."""
    return {"size_bytes": sum(bits) / 8 * 1e6, "latency_ms": sum(bits) / 32, "activation_peak_bytes": 1e5, "macs": 1e6}


def candidate(number: int, bits: tuple[int, int], wrong: int) -> Candidate:
    scores = REFERENCE.copy()
    scores[:wrong] = 0.0
    result = TargetResult("", executed(bits), (), costs(bits), compare(REFERENCE, scores, SEARCH))
    results = tuple(replace(result, target=target) for target in TARGETS)
    return Candidate(number, f"seed:uniform{bits[0]}", Assignment.of(dict(zip(LAYERS, bits, strict=True))), results)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """FP32, 16, 8 and 4 bits with drops of 0, 0, 1 and 10 points; only what FP32 and 16 share is dominated."""
    spec = spec_from(
        {"scope": {"space": "tiny"}, "hardware": {"targets": TARGETS, "batch": 4}, "accuracy": {"max_drop_points": 20}},
        where="test",
    )
    about = {target: {"batch": 4, "confidence": "facts only", "title": f"device {target}"} for target in TARGETS}
    provenance = {"model": "tiny", "weights_hash": "w" * 16, "data_hash": "d" * 16, "metric": "top-1 accuracy"}
    request = RunRequest(spec.to_json(), {"sampler": "tpe", "seed": 0}, provenance, about, {"groups": []})
    fp32 = executed((32, 32))
    measured = {split: compare(REFERENCE, REFERENCE, split) for split in (SEARCH, VALIDATION)}
    base = Baseline(
        fp32.signature, dict.fromkeys(measured, REFERENCE), measured, dict.fromkeys(TARGETS, costs((32, 32)))
    )
    with open_run(tmp_path / "run", request) as opened:
        opened.writer.append("baseline", base.to_json())
        for number, (bits, wrong) in enumerate((((32, 32), 0), ((16, 16), 0), ((8, 8), 1), ((4, 4), 10))):
            opened.writer.append("candidate", candidate(number, bits, wrong).to_json())
    return tmp_path / "run"


def haq(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_front_lists_what_nobody_beats_per_target(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = haq(capsys, "front", run, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found["fronts"]) == set(TARGETS)
    # FP32 is beaten by 16 bits, which is as accurate and half as large; the others trade accuracy for size.
    assert [row["size_bytes"] for row in found["fronts"]["a100"]] == [1e6, 2e6, 4e6]
    assert [row["drop_points"] for row in found["fronts"]["a100"]] == pytest.approx([10, 1, 0])
    assert found["joint"] == [1, 2, 3]


def test_front_prints_units_and_what_is_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = haq(capsys, "front", run, "--target", "a100")
    for part in ("latency modelled (facts only), ms per batch of 4", "accuracy measured", "-87.5 %", "95.00 %"):
        assert part in " ".join(out.split())
    assert "tpu-v4" not in out


def test_pick_writes_the_smallest_config_within_the_limit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "config.json"
    assert haq(capsys, "pick", run, "--target", "a100", "--max-drop", "2", "--out", out)[0] == 0
    config = json.loads(out.read_text())
    assert config["schema"] == "haq.config/v1"
    assert config["layers"] == {"a": "int8/int8", "b": "int8/int8"}
    assert config["metrics"]["size_bytes"] == {"value": 2e6, "kind": "modelled"}
    assert config["metrics"]["accuracy"]["kind"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("front", "RUN", "--target", "tpu-v3"), 2, "holds no sensitivities"),
        (("front", "RUN", "--max-drop", "1"), 2, "with the sampler haq"),
        (("front", "RUN", "--max-drop", "1", "--quality"), 2, "no measured quality"),
        (("front", "RUN", "--target", "a100", "--batch", "0"), 2, "x>=1"),
        (("front", "absent"), 2, "run.json"),
        (("pick", "RUN", "--out", "c.json"), 2, "--target"),
        (("pick", "RUN", "-t", "a100", "--max-size-mb", "0.5", "--out", "c.json"), 3, "exceeds the limit of 0.5 MB"),
        (("pick", "RUN", "-t", "a100", "--minimize", "energy", "--out", "c.json"), 2, "energy"),
        (("pick", "RUN", "-t", "a100", "--minimize", "speed", "--out", "c.json"), 2, "latency"),
        (("pick", "RUN", "-t", "a100", "--out", "RUN/run.json/c.json"), 2, "cannot write"),
        (("resume", "RUN"), 2, "haq.search"),
        (("report", "absent"), 2, "run.json"),
    ],
)
def test_wrong_requests_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    found, out, err = haq(capsys, *(a.replace("RUN", str(run)) for a in arguments))
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def test_report_prints_the_brief_and_rewrites_every_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = haq(capsys, "report", run)
    assert code == 0
    assert "at most 20 points below FP32" in out
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "front.csv").read_text().splitlines()) == 1 + 2 * 3
    assert len(list((run / "configs").glob("*.json"))) == 2 * 3
    assert "Scope" in (run / "brief.txt").read_text()
