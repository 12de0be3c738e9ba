"""The ONNX artifact, run by ONNX Runtime, computes what the simulator does, and holds what it says it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_nets import bundle_of, config_of, exportable_of, numbers, picture_bundle, text_bundle
from numpy.typing import NDArray
from onnx import TensorProto
from test_exportable import MIXED, TEXT_MIXED
from torch import Tensor, nn

from haq.errors import InputError
from haq.export import EXPORTERS
from haq.export.onnx_tensorrt import for_tensorrt
from haq.export.onnx_values import integers
from haq.export.report import ExportReport
from haq.hardware.size import size_bytes
from haq.measure.ort import PRECISE, REFUSED
from haq.nn.bundle import Bundle
from haq.nn.exportable import Exportable
from haq.nn.quantizers import QuantizedWeight
from haq.nn.task import forward

FLOAT = ("fp32", "fp16", "bf16", "int4/bf16", "int8/fp16", "int4g32/fp32", "int8/int8t", "int4g64/int8t")
"""Formats without static integer activations: nothing may differ but the order of sums."""
INTEGER = ("int8", "int4/int8", "int4/int4", "int4g64/int8", "int8/int16", "fp16/int8")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One for all, so that each network is captured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield None


def exported(what: Exportable, folder: Path, flavour: str = "cpu") -> tuple[ExportReport, onnx.ModelProto]:
    report = EXPORTERS["onnx-qdq"](what, folder / "net.onnx", {"flavour": flavour})
    return report, onnx.load(str(folder / "net.onnx"))


def session(path: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    for key, value in PRECISE.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(REFUSED)
    )


def run(path: Path, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    made = session(path)
    names = [value.name for value in made.get_inputs()]
    found: NDArray[np.float32] = made.run(["logits"], dict(zip(names, (t.numpy() for t in inputs), strict=True)))[0]
    return found


def simulated(what: Exportable, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    with torch.inference_mode():
        found = forward(what.simulated(), inputs)
    assert isinstance(found, Tensor)
    return found.numpy()


def assert_rare_steps(error: NDArray[np.float32], what: Exportable, inputs: tuple[Tensor, ...]) -> None:
    """A sum between two codes may become the other one: now and then, and never by more than quantization changes."""
    with torch.inference_mode():
        loss = np.abs(simulated(what, inputs) - what.model(*inputs).numpy())
    assert error.max() < max(loss.max(), 2e-6)
    assert error.mean() < max(0.3 * loss.mean(), 2e-6)


def a_batch(what: Exportable, count: int) -> tuple[Tensor, ...]:
    assert what.task is not None
    inputs = what.task.calibration()[0]
    assert isinstance(inputs, tuple)
    return tuple(tensor[:count] for tensor in inputs)


@pytest.mark.parametrize("bundle", [picture_bundle, text_bundle])
@pytest.mark.parametrize("formats", [*FLOAT, *INTEGER, "mixed"])
def test_onnx_runtime_computes_what_the_simulator_does(
    bundle: Callable[[], Bundle], formats: str, tmp_path: Path
) -> None:
    mixed = MIXED if bundle is picture_bundle else TEXT_MIXED
    what = exportable_of(bundle(), mixed if formats == "mixed" else formats)
    report, _ = exported(what, tmp_path)
    assert [(line.layer, line.asked) for line in report.layers] == list(what.executed.entries)
    assert all(line.written == line.asked for line in report.layers)
    inputs = a_batch(what, 13)
    expected = simulated(what, inputs)
    error = np.abs(run(tmp_path / "net.onnx", inputs) - expected)
    if formats in FLOAT:
        assert error.max() < 2e-6
    else:
        assert_rare_steps(error, what, inputs)


@pytest.mark.parametrize("formats", ["int8", "int4/int8", "int4/fp16", "int4g32/bf16", "int4/int4", "mixed"])
@pytest.mark.parametrize("bundle", [picture_bundle, text_bundle])
def test_the_tensorrt_flavour_computes_what_its_own_numbers_do(
    bundle: Callable[[], Bundle], formats: str, tmp_path: Path
) -> None:
    mixed = MIXED if bundle is picture_bundle else TEXT_MIXED
    what = exportable_of(bundle(), mixed if formats == "mixed" else formats)
    report, model = exported(what, tmp_path, "tensorrt")
    changed = for_tensorrt(what).what
    assert [line.written for line in report.layers] == [p for _, p in changed.executed.entries]
    inputs = a_batch(what, 13)
    expected = simulated(changed, inputs)
    assert np.abs(run(tmp_path / "net.onnx", inputs) - expected).max() < 1e-3
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in constants.items():
        if "zero_point" in name:
            assert tensor.data_type in (TensorProto.INT8, TensorProto.INT16)
            assert not onnx.numpy_helper.to_array(tensor).any()
    blocked = {n.input[0] for n in model.graph.node if any(a.name == "block_size" for a in n.attribute)}
    assert {n for n, t in constants.items() if t.data_type == TensorProto.INT4} <= blocked


def test_an_asymmetric_range_is_named_with_what_it_loses(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "int8")
    report, _ = exported(what, tmp_path, "tensorrt")
    lines = {line.layer: line for line in report.layers}
    # After a ReLU all 255 steps lie above zero, of which symmetric int8 has 127: 255 / 127 = 2.01.
    assert lines["depthwise"].note.endswith("made symmetric: steps 2.01 times as wide")
    assert lines["depthwise"].note.startswith("range -0 to ") or lines["depthwise"].note.startswith("range 0 to ")
    assert report.losses


def test_integer_convolutions_and_products_run_as_integers(tmp_path: Path) -> None:
    for formats in ("int8", "int4/int8"):
        what = exportable_of(picture_bundle(), formats)
        exported(what, tmp_path)
        session(tmp_path / "net.onnx", tmp_path / "optimized.onnx")
        ops = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)
        # The depthwise one alone is followed by a ReLU and a layer; the others' results are added or averaged in fp32.
        assert (ops["QLinearConv"], ops["QGemm"]) == (1, 1)
        biases = {
            t.name: t.data_type for t in onnx.load(str(tmp_path / "net.onnx")).graph.initializer if "bias" in t.name
        }
        assert [biases[f"{name}.bias"] for name in ("stem", "depthwise", "head")] == [1, 6, 6]  # FLOAT, INT32


def test_the_file_holds_packed_integers_under_the_names_of_the_state_dict(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), MIXED)
    _, model = exported(what, tmp_path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert model.ir_version == 10
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    stored = {name: (t.data_type, tuple(t.dims), len(t.raw_data)) for name, t in constants.items()}
    assert stored["pointwise.weight"] == (TensorProto.INT4, (16, 16, 1, 1), 128)  # 256 codes, two in a byte
    assert stored["stem.weight"] == (TensorProto.INT8, (16, 3, 3, 3), 432)
    assert stored["depthwise.weight"] == (TensorProto.FLOAT16, (16, 1, 3, 3), 288)
    assert stored["head.weight"] == (TensorProto.INT8, (5, 16), 80)
    assert stored["stem.bias"] == (TensorProto.FLOAT, (16,), 64)  # what follows reads it in two ways: nothing fuses
    assert stored["depthwise.bias"] == (TensorProto.FLOAT16, (16,), 32)
    assert stored["head.bias"] == (TensorProto.BFLOAT16, (5,), 10)
    assert stored["scales/stem.weight"] == (TensorProto.FLOAT, (16,), 64)
    assert stored["activation_zero_point/pointwise:0"] == (TensorProto.UINT8, (), 1)
    names = {node.name: node.op_type for node in model.graph.node}
    assert [names[layer] for layer in what.workload.layer_names] == ["Conv", "Conv", "Conv", "Gemm"]
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["haq.weights_hash"] == what.config["model"]["weights_hash"]
    assert json.loads(about["haq.layers"]) == what.executed.to_json()
    assert {value.type.tensor_type.shape.dim[0].WhichOneof("value") for value in model.graph.input} == {"dim_param"}


def test_the_codes_in_the_file_are_the_simulators(tmp_path: Path) -> None:
    what = exportable_of(text_bundle(), TEXT_MIXED)
    _, model = exported(what, tmp_path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for key, stored in what.numbers.weights.items():
        if isinstance(stored, QuantizedWeight):
            assert np.array_equal(constants[key].astype(np.int8), stored.codes.numpy()), key
            assert np.array_equal(constants[f"scales/{key}"], stored.scales.numpy()), key
    for (layer, index), quantizer in what.numbers.quantizers.items():
        name = f"activation_scale/{layer}:{index}"
        if name in constants:  # those that read one tensor alike share their nodes
            assert constants[name] == np.float32(quantizer.scale)


def test_the_sequence_axis_is_free(tmp_path: Path) -> None:
    what = exportable_of(text_bundle(), "int8")
    exported(what, tmp_path)
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(5))
    assert np.abs(run(tmp_path / "net.onnx", (ids,)) - simulated(what, (ids,))).max() < 5e-3


class Wide(nn.Module):
    """Large enough for weights to be most of the file."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(256, 512), nn.Linear(512, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("formats", ["int8", "int4/int8", "int4g64/int8", "fp16", "int4/fp16", "fp32"])
def test_the_constants_are_as_large_as_the_size_model_says(formats: str, tmp_path: Path) -> None:
    what = exportable_of(bundle_of(Wide().eval(), [(numbers(16, 256, seed=s),) for s in range(3)]), formats)
    _, model = exported(what, tmp_path)
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert held == pytest.approx(size_bytes(what.workload, what.executed), rel=0.01)


class Packed(nn.Module):
    """Attention whose projections are rows of one parameter, and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.twice = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        other = self.twice(x)
        return self.twice(self.attention(x, other, x)[0]).mean(1)


@pytest.mark.parametrize("formats", ["int8", "int4/int8", "fp16"])
def test_rows_of_packed_parameters_and_repeated_modules_are_written(formats: str, tmp_path: Path) -> None:
    what = exportable_of(bundle_of(Packed().eval(), [(numbers(16, 5, 16, seed=s),) for s in range(3)]), formats)
    assert "attention.in_proj/rows_0_16" in what.workload.layer_names
    _, model = exported(what, tmp_path)
    inputs = a_batch(what, 7)
    assert_rare_steps(np.abs(run(tmp_path / "net.onnx", inputs) - simulated(what, inputs)), what, inputs)
    assert {"attention.in_proj_weight[0:16]", "twice.weight"} <= {t.name for t in model.graph.initializer}


class Clamped(nn.Module):
    """Two clamps that rounding makes up for, and one whose range calibration saw only a part of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.a.weight.data *= 40
        self.b.weight.data *= 4

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.b(nn.functional.relu6(self.a(x))))
        return self.d(nn.functional.hardtanh(self.c(x), -30, 30)).mean((2, 3))


def test_a_clamp_that_rounding_makes_up_for_is_left_out(tmp_path: Path) -> None:
    bundle = bundle_of(Clamped().eval(), [(numbers(16, 8, 6, 6, seed=s),) for s in range(3)])
    what = exportable_of(bundle, "int8")
    _, model = exported(what, tmp_path)
    ops = Counter(node.op_type for node in model.graph.node)
    # Rounding to 0 ... 6 clips at 0 and 6; values of c lie well within 30, which their rounding cuts off sooner.
    assert ops["Clip"] == 0
    session(tmp_path / "net.onnx", tmp_path / "optimized.onnx")
    assert Counter(n.op_type for n in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)["QLinearConv"] == 3
    inputs = a_batch(what, 7)
    assert_rare_steps(np.abs(run(tmp_path / "net.onnx", inputs) - simulated(what, inputs)), what, inputs)
    floats = exportable_of(bundle, {"a": "int8/int8", "b": "fp16/fp16", "c": "int8/int8", "d": "fp32/fp32"})
    _, model = exported(floats, tmp_path)
    assert Counter(node.op_type for node in model.graph.node)["Clip"] == 2  # before b and d, which round nothing off


def test_a_channel_that_is_all_but_dead_leaves_its_layer_an_integer_one(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        network[0].weight[1] *= 1e-12  # type: ignore[index, operator]
        network[0].bias[1] = 1.5  # type: ignore[index, operator]
    what = exportable_of(
        bundle_of(nn.Sequential(network, nn.Flatten()).eval(), [(numbers(16, 3, 6, 6, seed=s),) for s in range(3)]),
        "int8",
    )
    report, model = exported(what, tmp_path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    stored = what.numbers.weights["0.0.weight"]
    assert isinstance(stored, QuantizedWeight)
    assert report.losses[0].note == "larger scales in 1 of 4 channels: biases must fit 32 bits"
    assert (constants["0.0.bias"].dtype, constants["0.0.bias"][1]) == (np.int32, 2**30)
    assert not constants["0.0.weight"][1].any()
    others = [0, 2, 3]
    assert np.array_equal(constants["0.0.weight"][others], stored.codes.numpy()[others])
    assert np.array_equal(constants["scales/0.0.weight"][others], stored.scales.numpy()[others])
    inputs = a_batch(what, 7)
    assert_rare_steps(np.abs(run(tmp_path / "net.onnx", inputs) - simulated(what, inputs)), what, inputs)


def test_nibbles_go_low_half_first() -> None:
    tensor = integers("w", np.array([[1, -2, 7]], np.int8), 4)
    assert tensor.raw_data == bytes([0xE1, 0x07])  # -2 is 0xE in four bits
    assert onnx.numpy_helper.to_array(tensor).astype(np.int8).tolist() == [[1, -2, 7]]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "int8")
    with pytest.raises(InputError, match="unknown flavour; got 'gpu'"):
        EXPORTERS["onnx-qdq"](what, tmp_path / "net.onnx", {"flavour": "gpu"})
    with pytest.raises(InputError, match=r"an \.onnx file"):
        EXPORTERS["onnx-qdq"](what, tmp_path / "net.json", {})


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if bool((x.sum() > 0).item()) else -x)


def test_a_network_that_branches_on_data_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(Branching().eval(), [(numbers(8, 4, seed=s),) for s in range(3)])
    what = exportable_of(bundle, config_of(bundle, "int8")["layers"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot capture the network"):
        exported(what, tmp_path)
