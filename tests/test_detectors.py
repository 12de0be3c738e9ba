"""Detectors of accuracy modes on evidence written by hand, so that each threshold can be redone."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.diagnose.detectors import DETECTORS
from haq.diagnose.evidence import Evidence, LayerEvidence, OperandEvidence, OutputEvidence, WeightEvidence
from haq.diagnose.finding import Repair
from haq.precision import FORMATS, Assignment, Precision
from haq.workload import Gemm, LayerSpec, WeightSpec, Workload

INT8, FP32 = FORMATS["int8"], FORMATS["fp32"]

OPERAND = OperandEvidence(
    layer="a", index=0, format=INT8, range=(0, 1), seen=(0, 1), calibrated=(0, 1), sqnr_db=45, best_sqnr_db=45,
    best_range=(0, 1), channel_sqnr_db=45, channel_largest=np.ones(4), codes_used=1, clipped_share=0,
    calibrated_clipped_share=0, overflow_share=0, underflow_share=0, not_finite=0, edges=np.array([0.0, 1.0]),
    counts=np.ones(1), calibrated_beyond_share=0,
)  # fmt: skip
WEIGHT = WeightEvidence(
    layer="a", format=INT8, sqnr_db=42, best_sqnr_db=42, tensor_sqnr_db=40, scales=np.full(4, 1 / 127),
    channel_largest=np.ones(4), scale_format=FP32, lost_channels=(), dead_channels=(), gain=np.ones(4),
)  # fmt: skip
OUTPUT = OutputEvidence(
    layer="a", sqnr_db=40, joint_sqnr_db=40, weight_sqnr_db=45, operand_sqnr_db=42, mean_error=np.zeros(4),
    error_deviation=np.full(4, 0.01), joint_gain=np.ones(4), joint_shift=np.zeros(4), largest=3, overflow_share=0,
    underflow_share=0, not_finite=0,
)  # fmt: skip


def evidence(operand=OPERAND, weight=WEIGHT, output=OUTPUT, bias=4):
    spec = LayerSpec(
        "a", "linear", ("x",), ((4,),), (4,), 16, Gemm(1, 4, 4, 1), WeightSpec("a.weight", (4, 4), 0), bias
    )
    workload = Workload("net", (("x", (4,)),), (spec,), ("a",))
    precision = Precision(weight.format, operand.format)
    layer = LayerEvidence("a", precision, (operand,), weight, output)
    return Evidence(workload, Assignment.of({"a": precision}), {"a": layer}, (), 64)


def found(looked):
    return [suspicion for detect in DETECTORS.values() for suspicion in detect(looked)]


def the_only(looked, mode):
    (suspicion,) = found(looked)
    assert (suspicion.mode, suspicion.layer) == (mode, "a")
    assert suspicion.change is not None
    return suspicion


def test_a_healthy_layer_is_above_suspicion() -> None:
    assert found(evidence()) == []


def test_a_range_wider_than_all_but_a_few_of_the_calibration_data_has_outliers() -> None:
    stretched = replace(
        OPERAND,
        range=(0, 4),
        calibrated=(0, 4),
        sqnr_db=33,
        best_sqnr_db=45,
        codes_used=0.25,
        calibrated_beyond_share=0.0009,
    )
    suspicion = the_only(evidence(stretched), "activation-outliers")
    assert suspicion.value == 12
    assert suspicion.severity == pytest.approx(10**-3.3 - 10**-4.5)
    assert suspicion.change.repairs == (Repair("clip", "a", 0),)
    assert "25% of the codes" in suspicion.text


def test_a_range_right_for_wider_calibration_data_is_a_mismatch() -> None:
    wide = replace(
        OPERAND, range=(0, 4), calibrated=(0, 4), sqnr_db=33, codes_used=0.25, calibrated_beyond_share=0.0011
    )
    suspicion = the_only(evidence(wide), "calibration-mismatch")
    assert suspicion.change.repairs == (Repair("recalibrate", "a", 0),)
    assert "0.25 times as wide" in suspicion.text


@pytest.mark.parametrize("beyond", [0.0, 0.5, None])
def test_a_range_that_clips_is_a_mismatch_whatever_calibration_says(beyond) -> None:
    narrow = replace(
        OPERAND, range=(0, 0.5), sqnr_db=10, best_sqnr_db=45, clipped_share=0.3, calibrated_beyond_share=beyond
    )
    suspicion = the_only(evidence(narrow), "calibration-mismatch")
    assert "30.00% of its numbers are clipped" in suspicion.text


@pytest.mark.parametrize(("gain", "suspected"), [(3.0, False), (3.02, True)])
def test_a_range_is_bad_from_half_a_bit_on(gain, suspected) -> None:
    operand = replace(OPERAND, range=(0, 2), sqnr_db=45 - gain)
    assert bool(found(evidence(operand))) == suspected


def test_ranges_per_token_and_float_operands_have_no_range_to_blame() -> None:
    for name, modes in (("int8t", set()), ("fp16", {"float-range"})):
        seen = found(evidence(replace(OPERAND, format=FORMATS[name], sqnr_db=20, best_sqnr_db=45)))
        assert {suspicion.mode for suspicion in seen} == modes


def test_a_channel_sixteen_times_narrower_than_its_scale_loses_four_bits() -> None:
    # All channels 1/16 of the one scale's reach: (16 x 1/127)^2 / 4 against (1/127)^2 / 4, 20 log10(16) = 24.08 dB
    weight = replace(WEIGHT, channel_largest=np.full(4, 1 / 16))
    suspicion = the_only(evidence(weight=weight), "channel-imbalance")
    assert suspicion.value == pytest.approx(24.08, abs=0.01)
    assert suspicion.severity == pytest.approx((16**2 - 1) / 127**2 / 4)
    assert suspicion.change.repairs == (Repair("per_channel", "a"),)


def test_one_channel_of_four_counts_with_a_quarter_of_its_noise() -> None:
    weight = replace(WEIGHT, channel_largest=np.array([1, 1, 1, 1 / 16]))
    assert the_only(evidence(weight=weight), "channel-imbalance").value == pytest.approx(
        10 * np.log10((3 + 16**2) / 4), abs=0.01
    )


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20))
def test_scales_that_follow_their_channels_are_never_suspected(largest) -> None:
    values = np.array(largest)
    assert found(evidence(weight=replace(WEIGHT, channel_largest=values, scales=values / 127))) == []


def test_channels_of_an_operand_are_blamed_only_where_the_output_suffers() -> None:
    operand = replace(OPERAND, sqnr_db=30, best_sqnr_db=30, channel_sqnr_db=45, channel_largest=np.array([1, 1, 1, 32]))
    assert found(evidence(operand)) == []
    suspicion = the_only(evidence(operand, output=replace(OUTPUT, operand_sqnr_db=20)), "channel-imbalance")
    assert suspicion.change.repairs == (Repair("equalize", "a", 0),)
    assert suspicion.severity == pytest.approx(0.01 * (1 - 10**-1.5))


def test_an_output_that_suffers_from_a_bad_range_is_not_blamed_on_channels() -> None:
    operand = replace(OPERAND, range=(0, 32), sqnr_db=15, channel_sqnr_db=55)
    assert the_only(evidence(operand, output=replace(OUTPUT, operand_sqnr_db=15)), "activation-outliers")


def test_an_error_that_is_half_mean_is_biased() -> None:
    # Mean 0.02 against deviation 0.01: 4/5 of the power
    output = replace(OUTPUT, mean_error=np.full(4, 0.02))
    suspicion = the_only(evidence(output=output), "biased-error")
    assert suspicion.value == pytest.approx(0.8)
    assert suspicion.severity == pytest.approx(0.8e-4)
    assert suspicion.change.repairs == (Repair("bias", "a"),)
    assert found(evidence(output=output, bias=0)) == []  # no bias to correct
    assert found(evidence(output=replace(output, mean_error=np.full(4, 0.009)))) == []


def test_a_shift_below_what_eight_bits_cost_is_none() -> None:
    output = replace(OUTPUT, mean_error=np.full(4, 0.02), sqnr_db=67)
    assert found(evidence(output=output)) == []


@pytest.mark.parametrize("other", ["range", "lost", "gain"])
def test_shifts_that_are_by_products_are_left_to_their_cause(other) -> None:
    output = replace(OUTPUT, mean_error=np.full(4, 0.02), sqnr_db=10)
    operand = replace(OPERAND, range=(0, 0.5), sqnr_db=10) if other == "range" else OPERAND
    weight = WEIGHT
    if other == "lost":
        weight = replace(WEIGHT, lost_channels=(1,), scales=np.array([1 / 127, 0, 1 / 127, 1 / 127]))
    if other == "gain":
        weight = replace(WEIGHT, gain_share=0.9)
    assert "biased-error" not in [s.mode for s in found(evidence(operand, weight, output))]


def test_scales_that_are_zero_or_subnormal_lose_channels() -> None:
    scales = np.array([1 / 127, 0.0, 2.0**-20, 0.0])
    weight = replace(WEIGHT, scales=scales, scale_format=FORMATS["fp16"], lost_channels=(1, 2, 3))
    suspicion = the_only(evidence(weight=weight), "degenerate-scale")
    assert suspicion.value == 0.75
    # Two whole channels, and one whose scale is off by up to 2^-5 of itself.
    assert suspicion.severity == pytest.approx((2 + 2.0**-8 / 12) / 4)
    assert "2 of them zero" in suspicion.text
    assert suspicion.change.repairs == (Repair("rescale", "a"),)


def test_channels_dead_in_fp32_are_nobodys_fault() -> None:
    weight = replace(WEIGHT, channel_largest=np.array([1, 0, 1, 1]), scales=np.array([1, 127, 1, 1]) / 127)
    assert found(evidence(weight=replace(weight, dead_channels=(1,)))) == []


def test_an_operand_calibrated_on_zeros_has_no_scale() -> None:
    operand = replace(OPERAND, calibrated=(0.0, 0.0), range=(0, 255), sqnr_db=2, calibrated_beyond_share=None)
    suspicion = the_only(evidence(operand), "degenerate-scale")
    assert suspicion.change.repairs == (Repair("recalibrate", "a", 0),)


def test_nothing_that_is_not_finite_stops_a_detector() -> None:
    infinite = float("inf")
    for sqnr in (-infinite, infinite):
        operand = replace(OPERAND, sqnr_db=sqnr, best_sqnr_db=sqnr, channel_sqnr_db=sqnr)
        output = replace(OUTPUT, sqnr_db=sqnr, operand_sqnr_db=sqnr, not_finite=4)
        assert found(evidence(operand, replace(WEIGHT, sqnr_db=sqnr), output)) == []


@pytest.mark.parametrize("mode", DETECTORS)
def test_every_detector_says_what_it_is_about(mode) -> None:
    module = importlib.import_module(f"haq.diagnose.{mode.replace('-', '_')}")
    assert mode == module.MODE
    assert module.REPAIR
    parts = [part.split(":")[0] for part in module.__doc__.split("\n\n")[1:]]
    assert parts == ["Mechanism", "Statistic", "Threshold", "Targets", "Repair"]
