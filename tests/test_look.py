"""One look at small quantized networks: the numbers against arithmetic and against plain torch."""

import math

import numpy as np
import pytest
import torch
from export_nets import bundle_of, exportable_of, numbers, picture_bundle, text_bundle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.nn.diagnosis.decibel import decibel
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.magnitudes import Magnitudes, counted
from haq.nn.diagnosis.operands import OperandSums, Rounding
from haq.nn.diagnosis.subject import subject_of
from haq.nn.quantizers import ActivationQuantizer
from haq.precision import FORMATS, Precision
from haq.workload import Gemm, LayerSpec

INT8 = FORMATS["int8"]
X = numbers(24, 3, 8, 8, seed=11)


def layer_of(kind="linear", shape=(4,)):
    return LayerSpec("a", kind, ("x",), (shape,), shape, 1, Gemm(1, 4, 4, 1))


def operand(x, scale, zero_point=0, fmt=INT8, kind="linear"):
    sums = OperandSums(layer_of(kind), 0, Rounding(fmt, ActivationQuantizer(fmt, scale, zero_point)))
    sums.add(x)
    return sums.evidence(None)


@pytest.fixture(scope="module")
def pictures():
    return subject_of(exportable_of(picture_bundle(), "int8/int8"))


@pytest.fixture(scope="module")
def seen(pictures):
    return look(pictures, [(X[:16],), (X[16:],)])


def test_evenly_spread_numbers_on_256_codes_have_six_decibels_per_bit() -> None:
    # Power of numbers even in 0 ... 1: 1/3; of rounding to steps of 1/255: 1/(12 * 255^2). 10 log10(4 * 255^2) = 54.15
    got = operand(torch.linspace(0, 1, 40_001).reshape(-1, 1), 1 / 255)
    assert got.sqnr_db == pytest.approx(10 * math.log10(4 * 255**2), abs=0.02)
    assert got.best_sqnr_db == pytest.approx(got.sqnr_db, abs=0.05)
    assert (got.codes_used, got.clipped_share, got.not_finite) == (1.0, 0.0, 0)
    assert got.range == pytest.approx((0, 1))


def test_a_range_stretched_by_four_costs_twelve_decibels_and_three_codes_of_four() -> None:
    x = torch.linspace(0, 1, 40_001).reshape(-1, 1)
    narrow, wide = operand(x, 1 / 255), operand(x, 4 / 255)
    assert narrow.sqnr_db - wide.sqnr_db == pytest.approx(20 * math.log10(4), abs=0.1)
    assert wide.best_sqnr_db == pytest.approx(narrow.sqnr_db, abs=0.1)
    assert wide.codes_used == pytest.approx(65 / 256)  # 0 ... 63.75, rounded
    assert wide.best_range == pytest.approx((0, 1), rel=0.02)


def test_the_share_beyond_the_range_is_counted() -> None:
    got = operand(torch.linspace(0, 1, 1001).reshape(-1, 1), 0.5 / 255)
    assert got.clipped_share == pytest.approx(0.5, abs=0.003)
    assert got.seen == (0, 1)


def test_outliers_leave_the_best_range_where_the_others_are() -> None:
    """One number of 100 among 100,000 up to 1: covering it costs steps of 100/255, clipping it 99^2 once."""
    x = torch.cat([torch.linspace(0, 1, 99_999), torch.tensor([100.0])]).reshape(-1, 1)
    covering = 10e4 * (100 / 255) ** 2 / 12
    assert covering > 99**2 / 10  # so that a range between the two is best
    got = operand(x, 100 / 255)
    assert got.best_range[1] < 100
    assert got.best_sqnr_db > got.sqnr_db


def test_channels_of_different_ranges_gain_what_the_mean_squared_step_says() -> None:
    # Two channels, 1 and 1/16 wide: steps 1/255 and 1/4080, mean square (1 + 1/256) / 2 of one step for both: 2.99 dB
    x = torch.stack([torch.linspace(0, 1, 20_001), torch.linspace(0, 1 / 16, 20_001)], dim=1)
    got = operand(x, 1 / 255)
    assert got.channel_sqnr_db - got.best_sqnr_db == pytest.approx(-10 * math.log10((1 + 1 / 256) / 2), abs=0.1)
    assert got.channel_largest == pytest.approx([1, 1 / 16])


def test_half_precision_overflows_above_65504_and_loses_what_is_below_its_least_number() -> None:
    sums = OperandSums(layer_of(), 0, Rounding(FORMATS["fp16"]))
    sums.add(torch.tensor([[1.0, 70_000.0, 2.0**-26, 0.0]]))
    got = sums.evidence(None)
    assert (got.overflow_share, got.underflow_share) == (0.25, 0.25)
    assert got.sqnr_db == -math.inf
    assert got.range == (-65504, 65504)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60))
def test_the_histogram_holds_every_number_once_and_adds_up(values) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    held = Magnitudes.of(counted(x[: len(x) // 2]) + counted(x[len(x) // 2 :]))
    assert held.total == len(values)
    assert (held.low <= held.high).all()
    for value in x.double().tolist():
        assert ((held.low <= value) & (value <= held.high)).any()
    assert held.between(np.array([-2e4, 2e4])) == pytest.approx([len(values)])


@pytest.mark.parametrize("high", [4.0, 2.0, 1.0])
def test_the_error_read_off_the_histogram_is_that_of_rounding(high) -> None:
    x = numbers(50_000)
    scale, zero = 2 * high / 255, 128
    exact = float((ActivationQuantizer(INT8, scale, zero)(x) - x).double().square().sum())
    assert Magnitudes.of(counted(x)).error(-high, high, 255) == pytest.approx(exact, rel=0.03)


def test_calibration_is_compared_with_what_is_served(pictures) -> None:
    """Data of half the size: calibration's largest numbers lie beyond them, its range stays what it was."""
    same, smaller = (
        look(pictures, [(factor * numbers(32, 3, 8, 8),)]).layers["stem"].operands[0] for factor in (1, 0.5)
    )
    assert (same.calibrated_beyond_share, same.calibrated_clipped_share) == (0, 0)  # the very same numbers
    assert same.seen == pytest.approx(same.calibrated, rel=1e-6)
    assert smaller.calibrated == same.calibrated
    half = float((numbers(32, 3, 8, 8) > smaller.seen[1]).sum() + (numbers(32, 3, 8, 8) < smaller.seen[0]).sum())
    assert smaller.calibrated_beyond_share == pytest.approx(half / (32 * 192), rel=0.05)


def test_an_untouched_network_loses_nothing() -> None:
    got = look(subject_of(exportable_of(picture_bundle(), "fp32")), [(X,)])
    for layer in got.layers.values():
        assert layer.output.sqnr_db == layer.output.joint_sqnr_db == layer.weight.sqnr_db == math.inf
        assert layer.operands[0].sqnr_db == math.inf
        assert layer.output.joint_gain == pytest.approx(1)
    assert got.samples == 24


@torch.no_grad()
def test_output_errors_are_those_of_the_layer_run_by_hand(pictures, seen) -> None:
    model, numbers_ = pictures.model, pictures.numbers
    exact = model.stem(X)
    rounded = numbers_.quantizers["stem", 0](X)
    weight = numbers_.weights["stem.weight"].dequantize()
    alone = nn.functional.conv2d(rounded, weight, numbers_.biases["stem.bias"], padding=1) - exact
    only_operand = nn.functional.conv2d(rounded, model.stem.weight, model.stem.bias, padding=1) - exact
    got = seen.layers["stem"].output

    def expected(wrong):
        return decibel(float(exact.double().square().sum()), float(wrong.double().square().sum()))

    assert got.sqnr_db == pytest.approx(expected(alone), abs=0.01)
    assert got.operand_sqnr_db == pytest.approx(expected(only_operand), abs=0.01)
    assert got.weight_sqnr_db == pytest.approx(expected(alone - only_operand), abs=0.01)
    assert got.mean_error == pytest.approx(alone.mean((0, 2, 3)).detach().numpy(), abs=1e-6)
    assert got.error_deviation == pytest.approx(alone.std((0, 2, 3), correction=0).detach().numpy(), rel=1e-3)
    assert got.largest == pytest.approx(float(exact.abs().max()))
    # The first layer reads the same in the whole network.
    assert got.joint_sqnr_db == pytest.approx(got.sqnr_db, abs=0.01)


@torch.no_grad()
def test_the_last_layers_joint_error_is_that_of_the_network(pictures, seen) -> None:
    exact, deployed = pictures.model(X), pictures.build()(X)
    got = seen.layers["head"].output
    wrong = float((deployed - exact).double().square().sum())
    assert got.joint_sqnr_db == pytest.approx(decibel(float(exact.double().square().sum()), wrong), abs=0.01)
    gain = deployed.std(0, correction=0) / exact.std(0, correction=0)
    assert got.joint_gain == pytest.approx(gain.detach().numpy(), rel=1e-3)


def test_a_bias_that_was_moved_shows_as_mean_error_and_nothing_else(pictures) -> None:
    biases = dict(pictures.numbers.biases)
    biases["stem.bias"] = biases["stem.bias"] + 0.5
    moved = pictures.with_(numbers=type(pictures.numbers)(
        pictures.numbers.weights, biases, pictures.numbers.quantizers, pictures.numbers.functional
    ))  # fmt: skip
    before, after = (look(s, [(X,)]).layers["stem"].output for s in (pictures, moved))
    assert after.mean_error - before.mean_error == pytest.approx(0.5, abs=1e-5)
    assert after.error_deviation == pytest.approx(before.error_deviation, rel=1e-2)


def test_weights_are_compared_with_better_scales(seen) -> None:
    got = seen.layers["depthwise"].weight
    assert got.sqnr_db <= got.best_sqnr_db + 1e-9
    assert got.tensor_sqnr_db < got.best_sqnr_db
    assert got.scales.shape == got.channel_largest.shape == (16,)
    assert (got.lost_channels, got.dead_channels) == ((), ())


def test_attention_products_embeddings_and_batches_of_other_lengths_are_seen() -> None:
    bundle = text_bundle()
    subject = subject_of(exportable_of(bundle, "int8/int8"))
    batches = [(torch.randint(0, 50, (4, length), generator=torch.Generator().manual_seed(1)),) for length in (12, 9)]
    got = look(subject, batches)
    products = [layer for name, layer in got.layers.items() if "matmul" in name]
    assert [len(layer.operands) for layer in products] == [2, 2]
    assert all(30 < layer.output.sqnr_db < 60 and layer.weight is None for layer in products)
    assert got.layers["embed"].operands == ()
    assert got.layers["embed"].output.sqnr_db > 30
    assert got.samples == 8


def test_fp16_is_cast_and_storage_only_weights_are_rounded() -> None:
    got = look(subject_of(exportable_of(picture_bundle(), "int8/fp16")), [(X,)]).layers["stem"]
    assert got.precision == Precision.parse("int8/fp16")
    assert 60 < got.operands[0].sqnr_db < 90
    assert got.output.weight_sqnr_db < got.output.operand_sqnr_db


@torch.no_grad()
def test_a_shared_step_at_an_add_costs_the_smaller_input_bits(pictures) -> None:
    exact = look(pictures, [(X,)]).layers["pointwise"].output
    output = pictures.model.pointwise(torch.relu(pictures.model.depthwise(torch.relu(pictures.model.stem(X)))))
    own = float(output.max() - output.min()) / 255
    got = look(pictures.with_(join_steps={"pointwise": 8 * own}), [(X,)])
    (join,) = got.joins
    assert (join.layer, join.bits_lost) == ("pointwise", pytest.approx(3, abs=1e-3))
    assert join.largest["pointwise"] == pytest.approx(exact.largest)
    assert len(join.largest) == 2
    assert got.layers["pointwise"].output.joint_sqnr_db < exact.joint_sqnr_db


class Inplace(nn.Module):
    """An activation that writes over what the layer gave."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.act, self.second = nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.act(self.first(x)).transpose(0, 1).contiguous().transpose(0, 1))


@torch.no_grad()
def test_activations_that_write_in_place_and_strided_inputs_change_nothing() -> None:
    bundle = bundle_of(Inplace().eval(), [(numbers(16, 6, seed=s),) for s in range(3)])
    subject = subject_of(exportable_of(bundle, "int8/int8"))
    x = numbers(16, 6, seed=5)
    got = look(subject, [(x,)])
    first = nn.functional.linear(x, subject.model.first.weight, subject.model.first.bias)
    assert got.layers["first"].output.largest == pytest.approx(float(first.abs().max()))
    last = subject.model(x)
    wrong = subject.build()(x) - last
    assert got.layers["second"].output.largest == pytest.approx(float(last.abs().max()), rel=1e-5)
    expected = decibel(float(last.square().sum()), float(wrong.square().sum()))
    assert got.layers["second"].output.joint_sqnr_db == pytest.approx(expected, abs=0.05)


def test_models_stay_as_they_are(pictures) -> None:
    before = {name: value.clone() for name, value in pictures.model.state_dict().items()}
    answer = pictures.model(X)
    look(pictures, [(X,)])
    assert all(torch.equal(value, before[name]) for name, value in pictures.model.state_dict().items())
    assert torch.equal(pictures.model(X), answer)
