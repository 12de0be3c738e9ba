"""A config becomes a `.tflite` that LiteRT runs as simulated, with haq's codes and scales; what is wrong is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from export_nets import exportable_of, numbers, picture_bundle
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.errors import InputError
from haq.export import EXPORTERS
from haq.export.litert import check_written, converted, with_numbers
from haq.export.litert_plan import LayerPlan
from haq.export.litert_quantize import check_rules
from haq.export.litert_sites import find_sites
from haq.export.report import ExportReport
from haq.export.tflite import CONFIG_KEY, Tflite
from haq.hardware.size import size_bytes
from haq.nn.exportable import Exportable
from haq.nn.quantizers import QuantizedWeight
from haq.nn.task import forward
from haq.precision import Precision
from haq.verify.artifact import Artifact, Broken, open_artifact
from haq.verify.litert_runtime import embedded_config
from haq.verify.measuring import How, measure

MIXED = {"stem": "fp32/fp32", "depthwise": "int8/int8", "pointwise": "int4/int8", "head": "fp16/fp16"}
LAYERS = tuple(MIXED)


class Bends(nn.Module):
    """Strides with padding, groups, twins of equal weights, no biases, pooling and flattening between layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.twin, self.other = nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 16, 1, bias=False)
        self.other.weight = nn.Parameter(self.twin.weight.detach().clone())
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.up, self.head = nn.Linear(24 * 4, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.twin(x)) + nn.functional.hardswish(self.grouped(x))
        x = nn.functional.relu6(self.down(self.other(x)))
        return self.head(torch.relu(self.up(x.flatten(1))))


def exported(what: Exportable, folder: Path, flavour: str = "static") -> tuple[ExportReport, Artifact]:
    report = EXPORTERS["litert"](what, folder / "model.tflite", {"flavour": flavour})
    return report, open_artifact(report.files[0], what.config)


def stored_codes(file: Tflite, layer: str, depthwise: bool) -> NDArray[np.int8]:
    """A layer's codes in torch's order: the file has channels last, and a depthwise weight as (1, h, w, channels)."""
    codes = file.codes(file.weights[layer])
    assert codes is not None
    return codes if codes.ndim == 2 else np.moveaxis(codes, 3, 0 if depthwise else 1)


def largest_gap(what: Exportable, artifact: Artifact) -> float:
    """The largest difference to the simulation, as a share of the outputs' range."""
    batch = (numbers(16, *next(iter(what.example)).shape[1:], seed=9),)
    with torch.inference_mode():
        simulated = forward(what.simulated(), batch).numpy()
    return float(np.abs(artifact.run(batch) - simulated).max() / np.ptp(simulated))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("layers", "flavour", "gap"),
    [
        # An int8 result has 255 steps over its range: half a step is 0.2 %, and a few of them add up.
        ("int8/int8", "static", 0.02), ("int4/int8", "static", 0.02), (MIXED, "static", 0.02),
        # Other scales than simulated: within what a step of int8 makes of it.
        ("int8/int8", "dynamic", 0.05), ("int4/int8", "dynamic", 0.05),
        ("int8/int8t", "static", 0.05),
        # The same numbers in wider arithmetic.
        ("fp16/fp16", "static", 0.005), ("int4/fp32", "static", 1e-5), ("fp32/fp32", "static", 1e-5),
        ("bf16/bf16", "static", 0.02), ("int4/bf16", "static", 0.02),
    ],
)  # fmt: skip
def test_litert_runs_what_is_simulated(layers: dict[str, str] | str, flavour: str, gap: float, tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), layers)
    report, artifact = exported(what, tmp_path, flavour)
    assert {line.layer: line.written for line in report.layers} == artifact.realised()
    assert largest_gap(what, artifact) < gap


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_strides_groups_twins_and_pooling_are_found_and_run(fmt: str, tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(Bends(), (3, 16, 16)), f"{fmt}/int8")
    _, artifact = exported(what, tmp_path)
    assert set(artifact.realised().values()) == {Precision.parse(f"{fmt}/int8")}
    assert largest_gap(what, artifact) < 0.04


@pytest.mark.parametrize("layers", ["int8/int8", "int4/int8", MIXED])
def test_the_file_holds_haqs_codes_and_scales(layers: dict[str, str] | str, tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), layers)
    _, artifact = exported(what, tmp_path)
    file = Tflite(artifact.file.read_bytes())
    evidence = measure(artifact, what, How("search", repeats=1))
    integer = [layer for layer in what.workload.layers if what.executed.precision(layer.name).weight.is_integer]
    assert set(evidence.scales) == {(layer.name, which) for layer in integer for which in ("weight", "operand 0")}
    for asked, got in evidence.scales.values():
        assert np.array_equal(asked.astype(np.float32), got)
    for layer in integer:
        assert layer.weight is not None
        stored = what.numbers.weights[layer.weight.key]
        assert isinstance(stored, QuantizedWeight)
        assert np.array_equal(stored_codes(file, layer.name, layer.is_depthwise), stored.codes.numpy())
        (op,) = file.users(file.weights[layer.name])
        assert file.zero_points(op.inputs[0]) == [what.numbers.quantizers[layer.name, 0].zero_point - 128]


@pytest.mark.parametrize(("layers", "more"), [("int8/int8", 0), ("int4/int8", 0), (MIXED, 5 * 2), ("fp32/fp32", 0)])
def test_the_parameters_take_what_the_config_promises(layers: dict[str, str] | str, more: int, tmp_path: Path) -> None:
    """more: beside fp16 weights LiteRT keeps fp32 biases, two bytes more for each of the head's five numbers."""
    what = exportable_of(picture_bundle(), layers)
    _, artifact = exported(what, tmp_path)
    zeros = 16 * 4  # the bias that LiteRT adds to the pointwise convolution, which has none
    assert artifact.size_bytes().initializer_bytes == size_bytes(what.workload, what.executed) + zeros + more


def test_an_int8_layer_writes_the_codes_that_the_next_one_reads(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "int8/int8")
    report, artifact = exported(what, tmp_path)
    file = Tflite(artifact.file.read_bytes())
    (op,) = file.users(file.weights["depthwise"])
    quantizer = what.numbers.quantizers["pointwise", 0]
    assert float(file.scales(op.outputs[0])[0]) == quantizer.scale
    rounded = {line.layer for line in report.layers if "rounded" in line.note}
    assert rounded == {
        "pointwise",
        "head",
    }  # an addition reads the one, nobody the other; stem writes depthwise's codes


def test_a_rule_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "fp32/fp32")
    model, weights = with_numbers(what)
    file = Tflite(converted(model, what.example))
    rule = {"regex": "^no such tensor;$", "operation": "CONV_2D", "algorithm_key": "float_casting", "op_config": {}}
    with pytest.raises(InputError, match=r"matches 0 ops; got '\^no such tensor;\$'"):
        check_rules(file, [rule])
    weights["stem"] = weights["stem"] + 1
    with pytest.raises(InputError, match="stem: the converted network has no op with the layer's weight"):
        find_sites(file, what.workload.layers, weights, set(LAYERS))


def test_a_layer_left_in_float_is_named(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), {**MIXED, "pointwise": "fp32/fp32"})
    _, artifact = exported(what, tmp_path)
    plans = {name: LayerPlan("static", Precision.parse(text)) for name, text in MIXED.items()}
    named = dict.fromkeys(MIXED, "")
    with pytest.raises(InputError, match="pointwise: the rule for the layer took no effect; got 'fp32/fp32'"):
        check_written(Tflite(artifact.file.read_bytes()), plans, named)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "int8/int8")
    _, artifact = exported(what, tmp_path)
    whole = artifact.file.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 4096):
        (tmp_path / "cut.tflite").write_bytes(whole[:length])
        with pytest.raises(Broken, match=r"cut\.tflite"):
            open_artifact(tmp_path / "cut.tflite", what.config)
    with pytest.raises(InputError, match="the inputs are not those of the file"):
        artifact.run((numbers(1, 3, 9, 9),))


def test_the_file_says_whose_it_is_and_how_long_it_takes(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), MIXED)
    _, artifact = exported(what, tmp_path)
    assert Tflite(artifact.file.read_bytes()).note(CONFIG_KEY) == what.config
    evidence = measure(artifact, what, How("search", repeats=3))
    assert evidence.latency is not None
    assert evidence.latency.median_ms > 0
    assert evidence.arithmetic == {"stem": "fp32", "depthwise": "int8", "pointwise": "int8", "head": "fp32"}
    bare = Tflite(artifact.file.read_bytes())
    bare.model.metadata = []
    artifact.file.write_bytes(bare.to_bytes())
    with pytest.raises(InputError, match="the artifact holds no config"):
        embedded_config(artifact.file)


def test_without_data_only_dynamic_scales_are_possible(tmp_path: Path) -> None:
    what = dataclasses.replace(exportable_of(picture_bundle(), "int8/int8"), task=None)
    with pytest.raises(InputError, match="no calibration data"):
        exported(what, tmp_path)
    _, artifact = exported(what, tmp_path, "dynamic")
    assert set(artifact.realised().values()) == {Precision.parse("int8/int8t")}
