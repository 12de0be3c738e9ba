"""`haq verify` from end to end: a real export passes in ONNX Runtime, one broken on purpose fails with its sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_configs import LAYERS
from test_cli import Haq

from haq.candidate import config_id
from haq.cli import main
from haq.hardware.measurements import read_measurements
from haq.nn.bundle import load_bundle
from haq.precision import Assignment, Precision
from haq.rundir import read_run
from haq.spacefile import load_space

SPACE = """
title = "A net of the test's own"
source = "made here"

[model]
factory = "./net.py:network"
trained = true

[[model.inputs]]
shape = [1, 8, 8]

[data]
task = "./net.py:task"
"""

CODE = """
import torch
from haq.nn.task import Batch, ClassificationTask
from small_configs import images, network


def labelled(seed, count):
    x = images(seed, count)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def task(space):
    splits = {"search": (Batch((labelled(1, 400)[0],), labelled(1, 400)[1]),),
              "validation": (Batch((labelled(2, 200)[0],), labelled(2, 200)[1]),)}
    return ClassificationTask(splits, ((images(3, 64),),), "data of the test")
"""

MIXED = ("int8/int8", "int4/int8", "fp16/fp16")
"""Of the two convolutions and the linear layer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The space, one exported artifact of a mixed config, and a run, all of one network: it is captured once."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "net.py").write_text(CODE)
    (folder / "own.toml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE_DIR", str(folder / "cache"))
        config(folder, MIXED, folder / "mixed.json")
        command = ["export", folder / "mixed.json", "--format", "onnx-qdq", "--out", folder / "mixed.onnx"]
        assert main([str(part) for part in (*command, "--space", folder / "own.toml")]) == 0
        yield folder


@pytest.fixture
def haq(capsys: pytest.CaptureFixture[str], folder: Path) -> Haq:
    return Haq(capsys)


def config(folder: Path, precisions: tuple[str, ...], out: Path, **more: Any) -> Path:
    """A config such as a search would have written."""
    bundle = load_bundle(load_space(folder / "own.toml"))
    layers = dict(zip(LAYERS, precisions, strict=True))
    executed = Assignment.of({name: Precision.parse(text) for name, text in layers.items()})
    raw = {
        "schema": "haq.config/v1",
        "id": config_id(executed, "reference"),
        "model": {"model": bundle.name, "weights_hash": bundle.weights_hash},
        "target": {"name": "reference", "batch": 1},
        "layers": layers,
        "quantization": {"ptq": ["bn_fold", "mse"], "observer": "minmax"},
        "metrics": {"latency_ms": {"value": 0.5, "kind": "modelled"}},
        "provenance": {"data_hash": bundle.data_hash},
        **more,
    }
    out.write_text(json.dumps(raw))
    return out


def verified(haq: Haq, folder: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    ran = haq("verify", *arguments, "--space", folder / "own.toml", "--repeats", "3", "--json")
    return ran.code, json.loads(ran.out) if ran.out else {"error": ran.err}


def broken(folder: Path, out: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(folder / "mixed.onnx")
    change(model)
    onnx.save(model, out)
    return out


def lines(found: dict[str, Any]) -> dict[str, Any]:
    return {line["check"]: line for line in found["lines"]}


def test_an_export_passes_and_its_config_is_found_inside(folder: Path, haq: Haq) -> None:
    code, found = verified(haq, folder, folder / "mixed.onnx")
    assert (code, found["passed"], found["faults"]) == (0, True, [])
    table = lines(found)
    assert table["accuracy"]["values"]["samples"] == 400
    assert table["accuracy"]["values"]["gap_points"] == pytest.approx(0, abs=0.3)
    assert table["realised precision"]["values"]["realised"] == dict(zip(LAYERS, MIXED, strict=True))
    # Two weights and the operands of both convolutions.
    assert table["scales"]["values"]["compared"] == 4
    assert table["latency"]["values"]["repeats"] == 3
    assert table["latency"]["values"]["modelled_ms"] == 0.5
    arithmetic = table["runs wider here"]["values"]["arithmetic"]
    assert arithmetic["0"] == "int8"
    assert arithmetic["7"] == "fp32"
    assert "7" in table["runs wider here"]["values"]["wider"]  # fp16 is computed in fp32 on a CPU
    assert any("x64quantprecision=1" in note for note in found["notes"])


def test_a_config_is_exported_first_or_named_with_its_artifact(folder: Path, haq: Haq) -> None:
    for more in ((), ("--artifact", folder / "mixed.onnx")):
        code, found = verified(haq, folder, folder / "mixed.json", *more, "--samples", "50", "--split", "validation")
        assert (code, found["passed"]) == (0, True)
        assert lines(found)["accuracy"]["values"]["samples"] == 50


def test_limits_close_the_gate_with_exit_code_1(folder: Path, haq: Haq) -> None:
    code, found = verified(haq, folder, folder / "mixed.onnx", "--max-latency-ms", "0")
    assert (code, found["passed"]) == (1, False)
    assert found["faults"][0].startswith("latency: ")
    error = haq.error("verify", folder / "mixed.onnx", "--space", folder / "own.toml", "--max-latency-ms", "0", code=1)
    assert error.startswith("haq: the gate is closed: latency: ")


def test_the_size_is_what_the_config_promises(folder: Path, haq: Haq, tmp_path: Path) -> None:
    # codes 72 + 576 / 2 + 2 x 96; scales 8 + 8; biases 8 and 8 in 4 bytes, 3 in two; scale and zero-point of operands
    exact = 72 + 288 + 192 + 4 * 16 + 4 * 16 + 2 * 3 + 2 * 5
    metrics = {"size_bytes": {"value": exact, "kind": "modelled"}}
    _, found = verified(haq, folder, config(folder, MIXED, tmp_path / "c.json", metrics=metrics))
    size = lines(found)["stored numbers"]["values"]
    assert size["promised_bytes"] == exact
    assert size["initializer_bytes"] >= exact


@pytest.mark.parametrize("which", ["scales/3.weight", "activation_scale/3:0"])
def test_a_scale_that_was_doubled_is_named(which: str, folder: Path, haq: Haq, tmp_path: Path) -> None:
    def double(model: onnx.ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == which]
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), which))

    code, found = verified(haq, folder, broken(folder, tmp_path / "m.onnx", double))
    assert code == 1
    what = "scale" if which.startswith("scales") else "scale of operand 0"
    assert f"layer 3: {what} differs from the config's by 2x" in found["faults"]


def test_a_layer_left_in_float_is_named(folder: Path, haq: Haq, tmp_path: Path) -> None:
    def leave(model: onnx.ModelProto) -> None:
        graph = model.graph
        producers = {name: node for node in graph.node for name in node.output}
        constants = {t.name: t for t in graph.initializer}
        (conv,) = [node for node in graph.node if node.name == "0"]
        conv.input[0] = producers[producers[conv.input[0]].input[0]].input[0]  # before Q and DQ
        dequantize = producers[conv.input[1]]
        codes, scales = (numpy_helper.to_array(constants[name]) for name in dequantize.input[:2])
        weight = codes.astype(np.float32) * scales.reshape(-1, 1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "float.weight"))
        conv.input[1] = "float.weight"

    code, found = verified(haq, folder, broken(folder, tmp_path / "m.onnx", leave))
    assert code == 1
    assert "layer 0 runs in fp32, config says int8/int8" in found["faults"]


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_truncated_file_is_one_sentence(share: float, folder: Path, haq: Haq, tmp_path: Path) -> None:
    whole = (folder / "mixed.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    code, found = verified(haq, folder, folder / "mixed.json", "--artifact", path)
    assert code == 1
    assert found["faults"][0].startswith(f"{path}: not a whole ONNX file: ")
    assert "not a whole ONNX file" in haq.error("verify", path, "--space", folder / "own.toml", code=1)


def test_the_config_of_another_network_is_named_with_both_hashes(folder: Path, haq: Haq, tmp_path: Path) -> None:
    other = "0" * 64
    path = config(folder, MIXED, tmp_path / "c.json", model={"model": "own", "weights_hash": other})
    code, found = verified(haq, folder, path, "--artifact", folder / "mixed.onnx")
    mine = json.loads((folder / "mixed.json").read_text())["model"]["weights_hash"]
    sentence = f"the artifact is of another network: weights_hash {mine} in it, {other} in the config"
    assert (code, found["faults"]) == (1, [sentence])
    # Without the artifact the weights at hand are compared: refused, for the input is wrong.
    error = haq.error("verify", path, "--space", folder / "own.toml")
    assert mine in error
    assert other in error


def test_another_config_of_the_network_is_named(folder: Path, haq: Haq, tmp_path: Path) -> None:
    path = config(folder, ("int8/int8",) * 3, tmp_path / "c.json")
    code, found = verified(haq, folder, path, "--artifact", folder / "mixed.onnx")
    here, there = (json.loads(file.read_text())["id"] for file in (path, folder / "mixed.json"))
    assert (code, found["faults"]) == (1, [f"the artifact is of config {there}, not of {here}: layers differ"])


def test_what_is_no_artifact_is_wrong_input(folder: Path, haq: Haq, tmp_path: Path) -> None:
    assert "not an artifact that can be run; got '.bin'" in haq.error("verify", tmp_path / "m.bin")
    assert "no such artifact" in haq.error("verify", tmp_path / "m.onnx")
    path = broken(folder, tmp_path / "m.onnx", lambda model: model.ClearField("metadata_props"))
    assert "the artifact holds no config" in haq.error("verify", path, "--space", folder / "own.toml")
    code, found = verified(haq, folder, folder / "mixed.json", "--artifact", path)
    assert (code, found["passed"]) == (0, True)  # its layers and numbers are the config's all the same


def test_the_loop_closes(folder: Path, haq: Haq) -> None:
    run, space = folder / "run", folder / "own.toml"
    assert haq("search", "--space", space, "--target", "reference", "--trials", "3", "--out", run).code == 0
    assert haq("pick", run, "--minimize", "size", "--out", folder / "picked.json").code == 0
    code, found = verified(haq, folder, folder / "picked.json", "--record", run, "--max-size-gap", "100")
    assert (code, found["recorded"]) == (0, True), found["faults"]

    (deployment,) = read_run(run).history.deployments
    picked = json.loads((folder / "picked.json").read_text())
    assert deployment.config == picked["id"]
    assert deployment.latency_ms == pytest.approx(lines(found)["latency"]["values"]["latency_ms"], abs=1e-6)
    assert deployment.modelled_ms == picked["metrics"]["latency_ms"]["value"]
    assert deployment.simulated == pytest.approx(picked["metrics"]["accuracy"]["value"])
    assert deployment.runtime.startswith("ONNX Runtime ")

    shown = haq("report", run).out
    assert "artifacts that were run" in shown
    header, row = [
        line for line in (run / "front.csv").read_text().splitlines() if "id" in line or picked["id"] in line
    ][:2]
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(values["artifact_latency_ms"]) == deployment.latency_ms
    assert float(values["artifact_accuracy"]) == deployment.accuracy
    haq("report", run, "--measurements", folder / "rows.csv")
    (row,) = read_measurements(folder / "rows.csv")
    assert (row.id, row.target, row.runtime) == (f"{picked['id']}-0", "reference", deployment.runtime)
    assert (row.space, row.batch, row.latency_ms) == (str(space), 1, deployment.latency_ms)
    assert json.loads((folder / row.precision).read_text())["layers"] == picked["layers"]
    assert "came from outside haq" in haq.error("calibrate", "a100", run)
    assert haq("resume", run, "--space", space).code == 0
    assert len(read_run(run).history.deployments) == 1

    error = haq.error("verify", folder / "mixed.json", "--record", run, "--space", space, "--repeats", "1")
    assert "the config is of another run" in error
    error = haq.error("verify", folder / "picked.json", "--record", run, "--space", space, "--samples", "20")
    assert "only a whole split is recorded" in error
