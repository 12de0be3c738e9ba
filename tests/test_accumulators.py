"""Sums that do not fit their accumulator, against integer loops over codes in numpy."""

import itertools

import numpy as np
import pytest
import torch
from export_nets import bundle_of, exportable_of, picture_bundle, text_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from haq.diagnose.accumulator_saturation import detect
from haq.errors import InputError
from haq.hardware.machine import PAIRS
from haq.hardware.profile import load_profile
from haq.measure.cpu_profile import cpu_document
from haq.measure.device import Limits
from haq.measure.machine import Machine
from haq.nn.diagnosis.accumulators import accumulator_of
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.subject import subject_of
from haq.nn.diagnosis.sums import needs

INT16 = np.iinfo(np.int16)


def subject(module, *shape, low=0.0, formats="int8/int8"):
    """A network of one layer, with weights near both ends of their codes, that reads numbers from `low` to 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        module.weight.copy_(torch.sign(module.weight) * (0.6 + 0.4 * torch.rand_like(module.weight)))
        if module.bias is not None:
            module.bias.uniform_(-3, 3)
    batches = [(low + (1 - low) * torch.rand(6, *shape, generator=torch.Generator().manual_seed(s)),) for s in range(3)]
    made = subject_of(exportable_of(bundle_of(nn.Sequential(module).eval(), batches), formats))
    return made, batches[1][0]


def codes_of(made, x):
    """Codes of the input, its zero-point, and codes of the weight: integers, nothing else."""
    quantizer = made.numbers.quantizers["0", 0]
    weight = made.numbers.weights["0.weight"]
    return quantizer.codes(x).numpy().astype(np.int64), quantizer.zero_point, weight.codes.numpy().astype(np.int64)


def dot(codes, zero_point, weight, named):
    """One sum as the device makes it. codes, weight: (taps, channels), taps beyond the picture hold the zero-point."""
    exact = int(((codes - zero_point) * weight).sum())
    if named != PAIRS:
        limit = 2 ** (int(named.removeprefix("int")) - 1)
        return min(max(exact, -limit), limit - 1)
    total = 0
    for tap, first in itertools.product(range(len(codes)), range(0, codes.shape[1], 2)):
        ends = slice(first, first + 2)
        pair = int((codes[tap, ends] * weight[tap, ends]).sum())
        # A channel without a neighbour is one product, 255 x 127 at most, and fits.
        total += min(max(pair, INT16.min), INT16.max)
    return total - zero_point * int(weight.sum())


def places(codes, zero_point, module):
    """(n, places, taps, channels) of what a convolution reads, for any padding, stride and dilation."""
    (kh, kw), (sh, sw) = module.kernel_size, module.stride
    (ph, pw), (dh, dw) = module.padding, module.dilation
    padded = np.pad(codes, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=zero_point)
    rows = range(0, padded.shape[2] - dh * (kh - 1), sh)
    columns = range(0, padded.shape[3] - dw * (kw - 1), sw)
    return np.stack(
        [
            np.stack([padded[:, :, r + dh * i, c + dw * j] for i in range(kh) for j in range(kw)], axis=1)
            for r, c in itertools.product(rows, columns)
        ],
        axis=1,
    )


def expected(made, x, named):
    """What the network gives, sum by sum: float64."""
    codes, zero_point, weight = codes_of(made, x)
    module = made.model[0]
    if isinstance(module, nn.Conv2d):
        read = places(codes, zero_point, module)
        taps = weight.reshape(*weight.shape[:2], -1).swapaxes(1, 2)
    else:
        read = codes.reshape(-1, 1, 1, codes.shape[-1])
        taps = weight[:, None]
    sums = np.array([[[dot(p, zero_point, t, named) for p in sample] for t in taps] for sample in read])
    scales = made.numbers.weights["0.weight"].scales.numpy() * made.numbers.quantizers["0", 0].scale
    y = sums * scales[:, None].astype(np.float64)
    if module.bias is not None:
        y = y + made.numbers.biases["0.bias"].numpy()[:, None].astype(np.float64)
    return y


def run(made, x, named):
    with torch.inference_mode():
        return made.with_(accumulators={} if named is None else {"0": named}).build()(x).numpy()


def check(made, x, named):
    """The network equals the loops to a tenth of a step, and differs from the exact one where any sum is cut off."""
    y = run(made, x, named)
    want = expected(made, x, named)
    want = want.reshape(y.shape) if y.ndim == 4 else want[:, :, 0].reshape(y.shape)
    steps = made.numbers.weights["0.weight"].scales.numpy() * made.numbers.quantizers["0", 0].scale
    assert abs(y - want).max() < 0.1 * steps.min()
    exact = expected(made, x, "int60").reshape(want.shape)
    assert abs(run(made, x, None) - exact).max() < 0.1 * steps.min()
    differs = abs(want - exact) > 0.5 * steps.min()
    need = needs(made.with_(accumulators={"0": named}), [(x,)])["0"]
    assert need.share == pytest.approx(differs.mean())
    return differs.mean()


@pytest.mark.parametrize("named", ["int12", "int16", "int20", PAIRS])
@pytest.mark.parametrize("inputs", [1, 2, 7, 16])
@pytest.mark.parametrize("low", [0.0, -0.4])
def test_a_linear_layer_sums_as_integer_loops_do(named, inputs, low) -> None:
    made, x = subject(nn.Linear(inputs, 5), inputs, low=low)
    check(made, x, named)


def test_a_linear_layer_on_tokens_sums_as_integer_loops_do() -> None:
    made, x = subject(nn.Linear(6, 5, bias=False), 3, 6)
    assert check(made, x, PAIRS) > 0
    assert check(made, x, "int14") > 0


@pytest.mark.parametrize("named", ["int16", PAIRS])
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "padding": (0, 1), "stride": (2, 1)},
        {"kernel_size": 2, "dilation": 2, "padding": 1, "stride": 2},
        {"kernel_size": 1},
    ],
)
@pytest.mark.parametrize("channels", [3, 4])
def test_a_convolution_sums_as_integer_loops_do(named, how, channels) -> None:
    made, x = subject(nn.Conv2d(channels, 3, **how), channels, 5, 6, low=-0.3)
    assert check(made, x[:2], named) > 0 or named == "int16"


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 9), outputs=st.integers(1, 3), low=st.sampled_from([0.0, -0.2, -1.0]), seed=st.integers(0, 99)
)
def test_any_layer_sums_as_integer_loops_do(inputs, outputs, low, seed) -> None:
    module = nn.Linear(inputs, outputs)
    made, x = subject(module, inputs, low=low)
    generator = torch.Generator().manual_seed(seed)
    x = low + (1.2 - low) * torch.rand(5, inputs, generator=generator)  # some beyond the range, too
    check(made, x, PAIRS)


def test_what_fits_stays_as_it_is_to_the_last_bit() -> None:
    made, x = subject(nn.Conv2d(3, 4, 3, padding=1), 3, 5, 5)
    assert np.array_equal(run(made, x, "int32"), run(made, x, None))
    # 27 products of at most 255 x 127: 874,395 takes 20 bits, and a sign.
    assert np.array_equal(run(made, x, "int21"), run(made, x, None))


def test_the_bits_that_sums_need_are_counted() -> None:
    made, x = subject(nn.Linear(4, 2, bias=False), 4)
    codes, zero_point, weight = codes_of(made, x)
    largest = abs((codes - zero_point) @ weight.T).max()
    bits = next(bits for bits in range(2, 64) if largest <= 2 ** (bits - 1) - 1)
    need = needs(made.with_(accumulators={"0": "int32"}), [(x[:3],), (x[3:],)])["0"]
    assert (need.bits, need.share) == (bits, 0.0)
    assert needs(made, [(x,)]) == {}


def test_seven_bit_weights_never_saturate_in_pairs() -> None:
    """ONNX Runtime's reduce_range: 255 x 64 twice is 32,640, and int16 ends at 32,767."""
    made, x = subject(nn.Linear(8, 3), 8)
    stored = made.numbers.weights["0.weight"]
    stored.codes.clamp_(-64, 64)
    assert check(made, x, PAIRS) == 0


def test_a_layer_that_loses_sums_is_suspected_with_the_bits_it_needs() -> None:
    made, x = subject(nn.Linear(16, 5), 16)
    evidence = look(made.with_(accumulators={"0": "int14"}), [(x,)])
    (suspicion,) = detect(evidence)
    need = needs(made.with_(accumulators={"0": "int14"}), [(x,)])["0"]
    assert suspicion.value == need.share > 0
    assert f"takes {need.bits} bits" in suspicion.text
    assert not list(detect(look(made, [(x,)])))


@pytest.mark.parametrize("named", ["int1", "int64", "int", "uint8", "fp32", "int16-pair", ""])
def test_an_unknown_accumulator_is_an_error(named) -> None:
    made, _ = subject(nn.Linear(4, 2), 4)
    with pytest.raises(InputError, match="unknown accumulator"):
        made.with_(accumulators={"0": named}).build()


@pytest.mark.parametrize("formats", ["fp32/fp32", "int8/fp32", "fp16/int8", "int8/int8t"])
def test_a_layer_without_integer_sums_has_no_accumulator(formats) -> None:
    made, _ = subject(nn.Linear(4, 2), 4, formats=formats)
    with pytest.raises(InputError, match="no sums of integers"):
        made.with_(accumulators={"0": "int16"}).build()


def test_pairs_of_grouped_convolutions_are_not_simulated() -> None:
    made = subject_of(exportable_of(picture_bundle(), "int8/int8"))
    with pytest.raises(InputError, match="plain 2-d"):
        made.with_(accumulators={"depthwise": PAIRS}).build()


def test_a_product_of_activations_has_no_weight_to_sum_with() -> None:
    what = exportable_of(text_bundle(), "int8/int8")
    layer = next(layer for layer in what.workload.layers if layer.kind == "matmul")
    with pytest.raises(InputError, match="no sums of integers"):
        accumulator_of(what.model, layer, what.executed.precision(layer.name), what.numbers, "int32")


def on(profile, formats, made=None):
    what = exportable_of(picture_bundle() if made is None else made, formats)
    return subject_of(what, profile).accumulators


def profile(**accumulators):
    return load_profile("reference").model_copy(update={"accumulators": accumulators})


def test_a_profile_says_what_its_rows_sum_in() -> None:
    plain = ("stem", "depthwise", "pointwise", "head")
    assert on(profile(int8="int24"), "int8/int8") == dict.fromkeys(plain, "int24")
    # Depthwise convolutions have no neighbouring channels to pair.
    assert on(profile(int8=PAIRS), "int4/int8") == dict.fromkeys(("stem", "pointwise", "head"), PAIRS)
    mixed = {"stem": "int8/int8", "depthwise": "fp16", "pointwise": "int8/fp32", "head": "int8/int8t"}
    assert on(profile(int8="int24", fp16="int24"), mixed) == {"stem": "int24"}


def test_without_a_word_of_the_profile_sums_are_exact() -> None:
    assert on(None, "int8/int8") == on(load_profile("reference"), "int8/int8") == {}
    assert on(profile(fp16="int24"), "int8/int8") == {}


def test_what_runs_as_something_else_on_the_target_is_left_out() -> None:
    tpu = load_profile("tpu-v4")
    assert on(tpu.model_copy(update={"accumulators": {"bf16": "int24"}}), "int8/int8") == {}


def test_pairs_on_tokens_and_products_of_activations() -> None:
    found = on(profile(int8=PAIRS), "int8/int8", text_bundle())
    assert set(found) == {"query", "key", "value", "up", "head"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f"}, {"accumulators": {"int8": PAIRS}}),
        ({"avx2", "avx512f", "avx512_vnni"}, {}),
        ({"avx2", "avx_vnni"}, {}),
        ({"asimddp"}, {}),  # Arm's dot products sum in int32
        (set(), {}),  # the system does not tell
    ],
)
def test_a_measured_cpu_without_vnni_sums_in_pairs(flags, expected) -> None:
    machine = Machine("a CPU", frozenset(flags), 2, None, None)
    limits = Limits({"int8": 2e11, "fp32": 1e11}, 1e10, 1e6, 1e11, 1e6, 1e-5)
    document = cpu_document(machine, 2, "ONNX Runtime 1.0", limits)
    assert {key: value for key, value in document.items() if key == "accumulators"} == expected
