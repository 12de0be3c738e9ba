"""What is measured on a GPU, as far as a machine without one can tell: the ops, the formats and the profile."""

import datetime
from functools import partial

import pytest
import torch

pytest.importorskip("onnxruntime")

from nets import residual
from nets import uniform as assigned

from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import build_profile, load_profile
from haq.measure import grid, patterns
from haq.measure.chain import chain, uniform
from haq.measure.cuda import LEAST_INT8_ROWS, cuda_cases
from haq.measure.cuda_profile import cuda_document, cuda_later
from haq.measure.device import Device, Limits, Streams, free_rates
from haq.measure.fitting import fit_device
from haq.measure.measure import Measured
from haq.measure.timing import Timing
from haq.measure.torch_run import build, ready
from haq.measure.writer import write_profile

IMAGE, ROWS = (16, 12, 12), (32, 32)
LIMITS = Limits(
    {"fp32": 15e12, "tf32": 100e12, "fp16": 200e12, "bf16": 200e12, "int8": 300e12}, 1.5e12, 1e6, 3e12, 1e6, 5e-6
)
WORKLOADS = {
    "convolutions": chain("c", IMAGE, [patterns.conv(16, 3), patterns.conv(32, 3, stride=2)]),
    "depthwise": chain("d", IMAGE, [patterns.conv(16, 3, groups=16)]),
    "linears": chain("l", ROWS, [patterns.linear(32)] * 2),
    "attention": patterns.attentions(ROWS, 4, ("mul", "add", "softmax")),
    "gates": patterns.gated(IMAGE, gate=True),
    "hard swish": patterns.with_glue(IMAGE, ("smooth",)),
    "norms": patterns.with_glue(ROWS, ("add", "norm", "smooth")),
    "concatenation": patterns.branches_joined(IMAGE, joined=True),
    "look-ups": patterns.embeddings(16, 32, 2),
    "pools": chain("p", IMAGE, [patterns.conv(16), patterns.pool]),
}


@pytest.mark.parametrize("fmt", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pattern_runs_in_every_float_format_with_the_sizes_that_it_declares(name, fmt):
    workload = WORKLOADS[name]
    with torch.inference_mode():
        results = build(uniform(workload, fmt), "cpu").forward()
    declared = {node.name: node.output_shape for node in workload.nodes}
    for output, result in zip(workload.outputs, results, strict=True):
        assert result.numel() == torch.Size(declared[output]).numel()
        assert torch.isfinite(result).all()


def test_an_int8_linear_layer_multiplies_codes_and_is_close_to_the_float_one():
    workload = WORKLOADS["linears"]
    with torch.inference_mode():
        (floats,), (integers,) = (build(uniform(workload, fmt), "cpu").forward() for fmt in ("fp32", "int8"))
    assert integers.dtype == torch.float16
    assert (floats - integers.float()).abs().max() < 0.3 * floats.abs().max()


def test_between_layers_of_two_formats_the_tensor_is_changed():
    case = patterns.alternating("change", ROWS, patterns.linear(32), ("fp32", "bf16"))
    with torch.inference_mode():
        (result,) = build(case.longer, "cpu").forward()
    assert result.dtype == torch.float32


def test_a_call_runs_the_bench_and_leaves_the_switch_for_tf32_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32
    assert ready(uniform(WORKLOADS["linears"], "tf32"), "cpu")() is None
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_int8_is_measured_where_pytorch_has_a_kernel_for_it():
    layers = [layer for case in cuda_cases() if "int8" in case.longer.formats for layer in case.longer.workload.layers]
    assert layers
    assert {layer.kind for layer in layers} == {"linear"}
    assert min(layer.gemm.m for layer in layers) >= LEAST_INT8_ROWS


@pytest.fixture(scope="module")
def gpu():
    """A GPU of round numbers, with a few comparisons of the grid."""
    document = partial(cuda_document, "a GPU", "PyTorch", 100, 40 * 2**30)
    streams = Streams(grid.large_streams(), (), grid.smallest())
    few = tuple(case for case in cuda_cases() if case.longer.workload.layers[0].kind == "linear")[::3]
    return Device(
        "a GPU",
        "PyTorch",
        few,
        streams,
        partial(ready, device="cpu"),
        document,
        free_rates,
        cuda_later,
        {"tf32": "tf32"},
    )


@pytest.fixture(scope="module")
def timings(gpu):
    """What the model itself says, under the option that each bench runs with."""
    profiles = {o: build_profile({"name": "m", **gpu.document(LIMITS)}, (o,) if o else (), "m") for o in ("", "tf32")}

    def seconds(bench):
        profile = profiles["tf32" if "tf32" in bench.formats else ""]
        return 1e-3 * estimate(bench.workload, bench.executed, profile, batch=1).latency_ms

    return {bench: Timing(seconds(bench), 0.01, 9) for bench in gpu.benches}


def test_the_profile_loads_with_its_option_and_multiplies_what_pytorch_can(gpu, timings, tmp_path):
    out = tmp_path / "gpu.toml"
    write_profile(out, Measured(gpu, timings, fit_device(gpu, timings)), datetime.date(2026, 11, 24))
    profile, net = load_profile(str(out)), residual()
    executed = {bits: legalize(net, assigned(net, bits), profile).executed for bits in (4, 8, 16, 32)}
    assert [str(executed[8][layer]) for layer in "abc"] == ["fp16/fp16", "fp16/fp16", "int8/int8"]
    assert {str(p) for p in executed[16].values()} == {"fp16/fp16"}
    rounded = load_profile(f"{out}:tf32")
    plain, fast = (estimate(net, executed[32], p, batch=8).layers[1].compute_ms for p in (profile, rounded))
    assert fast < plain


def test_the_table_tells_fp32_from_tf32(gpu, timings):
    rows = fit_device(gpu, timings).rows
    assert {row.likeness.group[3] for row in rows if row.likeness.group[0] == "gemm"} == {
        "fp32", "tf32", "fp16", "bf16", "int8",
    }  # fmt: skip
