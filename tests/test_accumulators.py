"""Narrow accumulators against a simulation in plain integers, product by product."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from export_nets import bundle_of, exportable_of, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import attention, conv, linear, residual
from pydantic import ValidationError
from torch import nn

from haq.errors import InputError
from haq.hardware.accumulators import accumulators_of
from haq.hardware.machine import PAIRS, Arithmetic
from haq.hardware.profile import load_profile
from haq.measure.cpu_profile import sums_in_pairs
from haq.nn.diagnosis.accumulators import accumulator_of
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.subject import subject_of
from haq.nn.diagnosis.sums import needs
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight
from haq.nn.tuned import Tuned
from haq.precision import FORMATS, Assignment, Precision
from haq.problems import content_hash

INT8 = FORMATS["int8"]
W8A8, W4A8 = Precision.parse("int8/int8"), Precision.parse("int4/int8")
ZERO, SCALE = 113, 1 / 64
INT16, INT32 = (-(2**15), 2**15 - 1), (-(2**31), 2**31 - 1)


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.a = layer

    def forward(self, x):
        return self.a(x)


def random_codes(seed, *shape):
    """Mostly codes near the ends, so that pairs saturate on both sides."""
    return np.random.default_rng(seed).choice([0, 1, 40, 200, 254, 255], shape)


def ran(layer, spec, codes, named, seed=0):
    """(weight codes, the sums that the layer's accumulator leaves, the accumulator, what it was given)."""
    rng = np.random.default_rng(seed)
    weight = torch.tensor(rng.integers(-127, 128, layer.weight.shape), dtype=torch.int8)
    scales = torch.tensor(rng.uniform(0.5, 2, len(weight)) / 256, dtype=torch.float32)
    stored = QuantizedWeight(INT8, weight, scales, 0)
    with torch.no_grad():
        layer.weight.copy_(stored.dequantize())
        layer.bias.copy_(torch.tensor(rng.standard_normal(len(weight)), dtype=torch.float32))
    tuned = Tuned(
        {"a.weight": stored}, {"a.bias": layer.bias.detach()}, {("a", 0): ActivationQuantizer(INT8, SCALE, ZERO)},
        frozenset(),
    )  # fmt: skip
    x = SCALE * (torch.tensor(codes, dtype=torch.float32) - ZERO)
    accumulator = accumulator_of(Net(layer), spec, W8A8, tuned, named)
    with torch.no_grad():
        y = layer(x)
        left = accumulator.sums(accumulator(y, x))
    return weight.numpy().astype(np.int64), left.numpy(), accumulator, (y, x)


def cut(values, to):
    return np.clip(values, *to)


def sum_in_pairs(codes, weight):
    """One dot product of integers as vpmaddubsw and vpaddd do it. The zero-point's part is what the sum starts from."""
    codes, weight = np.append(codes, 0), np.append(weight, 0)  # a last one without a neighbour has zero beside it
    total = -ZERO * weight.sum()
    for i in range(0, len(codes) - 1, 2):
        total += cut(codes[i] * weight[i] + codes[i + 1] * weight[i + 1], INT16)
    return cut(total, INT32)


def columns(codes, kernel, stride, padding, dilation):
    """Of one picture (channels, height, width): what the kernel reads at each place, tap by tap, channels last."""
    padded = np.pad(codes, ((0, 0), (padding, padding), (padding, padding)), constant_values=ZERO)
    reach = dilation * (kernel - 1) + 1
    for top in range(0, padded.shape[1] - reach + 1, stride):
        for left in range(0, padded.shape[2] - reach + 1, stride):
            taps = [(top + dilation * i, left + dilation * j) for i in range(kernel) for j in range(kernel)]
            yield np.concatenate([padded[:, i, j] for i, j in taps])


@pytest.mark.parametrize("inputs", [16, 17])
def test_pairs_of_a_linear_layer_saturate_as_the_instruction_does(inputs) -> None:
    codes = random_codes(1, 6, inputs)
    weight, left, *_ = ran(nn.Linear(inputs, 5), linear("a", "x", inputs, 5, bias=5), codes, PAIRS)
    expected = [[sum_in_pairs(row, w) for w in weight] for row in codes]
    assert np.array_equal(left, expected)
    assert not np.array_equal(left, (codes - ZERO) @ weight.T)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation", "groups"),
    [
        (4, 3, 1, 1, 1, 1), (3, 3, 2, 1, 1, 1), (1, 3, 1, 0, 2, 1), (6, 2, 1, 0, 1, 2), (6, 3, 1, 1, 1, 2),
        (8, 1, 2, 0, 1, 1),
    ],
)  # fmt: skip
def test_pairs_of_a_convolution_are_neighbours_of_its_columns(
    channels, kernel, stride, padding, dilation, groups
) -> None:
    codes = random_codes(2, 2, channels, 6, 6)
    module = nn.Conv2d(channels, 4, kernel, stride, padding, dilation, groups)
    spec = conv("a", "x", channels, 4, 6, kernel, groups, bias=4)
    weight, left, *_ = ran(module, spec, codes, PAIRS)
    read, wrote = channels // groups, 4 // groups
    for sample, c in np.ndindex(2, 4):
        mine = codes[sample, c // wrote * read : (c // wrote + 1) * read]
        flat = weight[c].transpose(1, 2, 0).flatten()
        expected = [sum_in_pairs(column, flat) for column in columns(mine, kernel, stride, padding, dilation)]
        assert np.array_equal(left[sample, c].flatten(), expected)


def test_padding_that_repeats_the_picture_is_read_as_such() -> None:
    codes = random_codes(3, 1, 2, 4, 4)
    module = nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular")
    weight, left, *_ = ran(module, conv("a", "x", 2, 3, 4, bias=3), codes, PAIRS)
    wrapped = np.pad(codes[0], ((0, 0), (1, 1), (1, 1)), mode="wrap")
    flat = weight.transpose(0, 2, 3, 1).reshape(3, -1)
    expected = [[sum_in_pairs(column, w) for column in columns(wrapped, 3, 1, 0, 1)] for w in flat]
    assert np.array_equal(left[0].reshape(3, -1), expected)


def test_parts_of_a_batch_lose_what_the_whole_does(monkeypatch) -> None:
    codes = random_codes(4, 5, 4, 4, 4)
    module, spec = nn.Conv2d(4, 4, 3, padding=1), conv("a", "x", 4, 4, 4, bias=4)
    _, whole, *_ = ran(module, spec, codes, PAIRS)
    monkeypatch.setattr("haq.nn.diagnosis.accumulators.AT_ONCE", 1)
    _, parts, *_ = ran(module, spec, codes, PAIRS)
    assert np.array_equal(whole, parts)


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(8, 24), seed=st.integers(0, 1000))
def test_a_sum_ends_at_the_last_number_that_its_accumulator_holds(bits, seed) -> None:
    codes = random_codes(seed, 4, 9)
    weight, left, accumulator, given_ = ran(nn.Linear(9, 3), linear("a", "x", 9, 3, bias=3), codes, f"int{bits}", seed)
    exact, holds = (codes - ZERO) @ weight.T, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert np.array_equal(left, cut(exact, holds))
    assert np.array_equal(accumulator.cut_off(*given_).numpy(), exact != cut(exact, holds))


def test_a_wide_accumulator_changes_not_one_bit() -> None:
    codes = random_codes(5, 8, 64)
    *_, accumulator, (y, x) = ran(nn.Linear(64, 8), linear("a", "x", 64, 8, bias=8), codes, "int32")
    assert torch.equal(accumulator(y, x), y)
    assert not accumulator.cut_off(y, x).any()


def test_weights_of_seven_bits_never_saturate_in_pairs() -> None:
    # 255 x (64 + 64) = 32,640 is below 32,767: ONNX Runtime's reduce_range.
    *_, accumulator, (_, x) = ran(nn.Linear(8, 4), linear("a", "x", 8, 4, bias=4), np.full((2, 8), 255), PAIRS)
    narrow = replace(accumulator.weight, codes=torch.full((4, 8), 64, dtype=torch.int8))
    y = torch.nn.functional.linear(x, narrow.dequantize(), accumulator.bias)
    assert torch.equal(replace(accumulator, weight=narrow)(y, x), y)


def test_sums_of_thousands_of_products_are_recovered_to_fp32s_rounding() -> None:
    # The largest sums of ResNets: 512 channels at 9 taps.
    codes = np.random.default_rng(6).integers(0, 256, (16, 4608))
    weight, _, accumulator, (y, _) = ran(nn.Linear(4608, 8), linear("a", "x", 4608, 8, bias=8), codes, "int32")
    exact = (codes - ZERO) @ weight.T
    products = np.abs(codes - ZERO) @ np.abs(weight).T
    assert np.all(np.abs(accumulator.sums(y).numpy() - exact) <= 2.0**-22 * products + 0.5)


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    net = Net(nn.Linear(6, 3)).eval()
    return subject_of(exportable_of(bundle_of(net, [(numbers(32, 6, seed=s),) for s in range(3)]), "int8/int8"))


def exact_sums(subject, x):
    operand = subject.numbers.quantizers["a", 0]
    codes = operand.codes(x).numpy().astype(np.int64) - operand.zero_point
    return codes @ subject.numbers.weights["a.weight"].codes.numpy().astype(np.int64).T


def test_what_sums_need_is_counted_on_what_is_looked_at(subject) -> None:
    x = numbers(40, 6, seed=7)
    sums = exact_sums(subject, x)
    largest = int(np.abs(sums).max())
    bits = next(n for n in range(64) if largest < 2 ** (n - 1))
    narrow = subject.with_(accumulators={"a": f"int{bits - 2}"})
    beyond = (sums < -(2 ** (bits - 3))) | (sums > 2 ** (bits - 3) - 1)
    need = needs(narrow, [(x[:24],), (x[24:],)])["a"]
    assert (need.bits, need.share) == (bits, beyond.mean())
    assert 0 < need.share < 1
    output = look(narrow, [(x,)]).layers["a"].output
    assert (output.accumulator_bits, output.saturated_share) == (bits, beyond.mean())
    assert needs(subject, [(x,)]) == {}


@torch.no_grad()
def test_a_subject_computes_with_its_accumulators(subject) -> None:
    x = numbers(16, 6, seed=8)
    stored, operand = subject.numbers.weights["a.weight"], subject.numbers.quantizers["a", 0]
    held = torch.tensor(cut(exact_sums(subject, x), (-(2**12), 2**12 - 1)))
    expected = held * stored.scales * operand.scale + subject.numbers.biases["a.bias"]
    got = subject.with_(accumulators={"a": "int13"}).build()(x)
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(got, subject.build()(x))


@pytest.mark.parametrize("named", ["int1", "int64", "uint8", "int16-triples", ""])
def test_unknown_accumulators_are_refused_in_code_and_in_profiles(subject, named) -> None:
    with pytest.raises(InputError, match="unknown accumulator"):
        subject.with_(accumulators={"a": named}).build()
    peak = {"value": 1, "unit": "TOP/s", "source": "a test's own", "status": "assumed"}
    with pytest.raises(ValidationError, match="unknown accumulator"):
        Arithmetic.model_validate({"peak": peak, "accumulator": named})


def test_depthwise_convolutions_and_floats_have_no_pairs() -> None:
    with pytest.raises(InputError, match="does not sum in pairs"):
        ran(nn.Conv2d(4, 4, 3, groups=4), conv("a", "x", 4, 4, 6, groups=4, bias=4), np.zeros((1, 4, 6, 6)), PAIRS)
    spec = linear("a", "x", 4, 4)
    floats = Tuned({"a.weight": torch.ones(4, 4)}, {}, {}, frozenset())
    with pytest.raises(InputError, match="no sums of integers"):
        accumulator_of(Net(nn.Linear(4, 4)), spec, Precision.parse("fp16"), floats, "int16")


def with_accumulator(named, row="int8", target="reference"):
    profile = load_profile(target)
    changed = profile.arithmetic[row].model_copy(update={"accumulator": named})
    return profile.model_copy(update={"arithmetic": {**profile.arithmetic, row: changed}})


def executed(workload, precision):
    return Assignment.of(dict.fromkeys(workload.layer_names, precision))


def test_only_layers_whose_sums_may_not_fit_are_named() -> None:
    net = residual()  # sums of 27, 576 and 64 products
    as_int8 = executed(net, W8A8)
    assert accumulators_of(with_accumulator(PAIRS), net, as_int8) == dict.fromkeys("abc", PAIRS)
    # 27 products of 255 x 127 are 874,395: below 2^20, beyond 2^19; 64 are 2,072,640: below 2^21.
    assert accumulators_of(with_accumulator("int21"), net, as_int8) == {"b": "int21", "c": "int21"}
    assert accumulators_of(with_accumulator("int22"), net, as_int8) == {"b": "int22"}
    assert accumulators_of(with_accumulator("int32"), net, as_int8) == {}
    # Two products of 255 x 7 are 3,570.
    assert accumulators_of(with_accumulator(PAIRS), net, executed(net, W4A8)) == {}
    assert accumulators_of(with_accumulator("int12"), net, executed(net, Precision.parse("fp16"))) == {}
    mixed = Assignment.of({"a": Precision.parse("fp32"), "b": W8A8, "c": Precision.parse("int8/bf16")})
    assert accumulators_of(with_accumulator(PAIRS), net, mixed) == {"b": PAIRS}


def test_depthwise_layers_embeddings_products_and_what_is_not_executed_are_left_out() -> None:
    words = attention()
    found = accumulators_of(with_accumulator(PAIRS), words, executed(words, W8A8))
    assert found == {"q": PAIRS, "k": PAIRS}
    net = replace(residual(), nodes=(conv("a", "x", 8, 8, 4, groups=8),), outputs=("a",))
    assert accumulators_of(with_accumulator(PAIRS), net, executed(net, W8A8)) == {}
    # 9 products of 255 x 127 are 291,465, beyond 2^18.
    assert accumulators_of(with_accumulator("int19"), net, executed(net, W8A8)) == {"a": "int19"}
    other = residual()
    assert (
        accumulators_of(with_accumulator(PAIRS, "int8", "a100"), other, executed(other, Precision.parse("int16"))) == {}
    )


@pytest.mark.parametrize("target", ["tpu-v3", "tpu-v4", "a100", "t4", "mobile", "mobile-cpu", "reference"])
def test_no_built_in_target_has_a_narrow_accumulator(target) -> None:
    profile, net = load_profile(target), residual()
    assert accumulators_of(profile, net, executed(net, W8A8)) == {}


def test_a_profile_keeps_its_hash_unless_its_accumulator_is_another() -> None:
    plain = load_profile("a100")
    assert content_hash(with_accumulator("int32", "int8", "a100")) == content_hash(plain)
    assert content_hash(with_accumulator(PAIRS, "int8", "a100")) != content_hash(plain)


@pytest.mark.parametrize(
    ("flags", "pairs"),
    [
        ({"sse4_1", "avx2"}, True), ({"avx2", "avx512f"}, True), ({"avx2", "avx512f", "avx512_vnni"}, False),
        ({"avx2", "avx_vnni"}, False), ({"asimddp"}, False), ({"sse4_1"}, False), (set(), False),
    ],
)  # fmt: skip
def test_a_cpu_sums_in_pairs_with_avx2_and_without_vnni(flags, pairs) -> None:
    assert sums_in_pairs(frozenset(flags)) == pairs


def test_a_config_takes_the_accumulators_of_its_target() -> None:
    net = Net(nn.Linear(6, 3)).eval()
    what = exportable_of(bundle_of(net, [(numbers(32, 6, seed=s),) for s in range(3)]), "int8/int8")
    assert subject_of(what, with_accumulator(PAIRS)).accumulators == {"a": PAIRS}
    assert subject_of(what, load_profile("reference")).accumulators == {}
