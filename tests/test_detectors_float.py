"""Detectors of float ranges, sums, joins, operators and accumulation, on evidence whose thresholds can be redone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from export_nets import bundle_of, exportable_of, numbers, picture_bundle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.accuracy import Interval
from haq.diagnose import (
    accumulator_saturation,
    error_accumulation,
    float_range,
    join_mismatch,
    sensitive_operator,
)
from haq.diagnose.evidence import Evidence, JoinEvidence, LayerEvidence, OperandEvidence, OutputEvidence
from haq.diagnose.finding import Change, Effect, Outcome, Repair
from haq.diagnose.localize import Shares
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.subject import subject_of
from haq.precision import FORMATS, Assignment, Precision
from haq.workload import Workload

DETECTORS = (accumulator_saturation, error_accumulation, float_range, join_mismatch, sensitive_operator)
FP32 = Precision.parse("fp32")
NOTHING = Workload("net", (("x", (4,)),), (), ())
X = numbers(24, 3, 8, 8, seed=11)


def operand(**changes):
    healthy = OperandEvidence(
        layer="a", index=0, format=FORMATS["fp16"], range=(-65504, 65504), seen=(-3, 3), calibrated=None, sqnr_db=70,
        best_sqnr_db=70, best_range=(-65504, 65504), channel_sqnr_db=70, channel_largest=np.ones(4), codes_used=1,
        clipped_share=0, calibrated_clipped_share=None, overflow_share=0, underflow_share=0, not_finite=0,
        edges=np.array([0.0, 1.0]), counts=np.ones(1),
    )  # fmt: skip
    return replace(healthy, **changes)


def output(name="a", **changes):
    healthy = OutputEvidence(
        layer=name, sqnr_db=65, joint_sqnr_db=60, weight_sqnr_db=70, operand_sqnr_db=70, mean_error=np.zeros(4),
        error_deviation=np.zeros(4), joint_gain=np.ones(4), joint_shift=np.zeros(4), largest=3, overflow_share=0,
        underflow_share=0, not_finite=0,
    )  # fmt: skip
    return replace(healthy, **changes)


def evidence(precision, outputs, operands=(), joins=(), forced=None):
    chosen = Precision.parse(precision)
    layers = {made.layer: LayerEvidence(made.layer, chosen, tuple(operands), None, made) for made in outputs}
    return Evidence(NOTHING, Assignment.of(dict.fromkeys(layers, chosen)), layers, tuple(joins), 64, forced or {})


def found(looked):
    return [suspicion for detector in DETECTORS for suspicion in detector.detect(looked)]


def floats(precision, read=None, gives=None):
    return list(float_range.detect(evidence(precision, [output(**(gives or {}))], [operand(**(read or {}))])))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8/fp16", "fp32", "int8/int8"])
def test_a_healthy_layer_is_above_suspicion(precision) -> None:
    assert found(evidence(precision, [output()], [operand()])) == []


@pytest.mark.parametrize("where", ["read", "gives"])
def test_one_overflow_is_enough_and_fp32_undoes_it(where) -> None:
    (suspicion,) = floats("fp16", **{where: {"overflow_share": 1e-6}})
    assert (suspicion.mode, suspicion.layer, suspicion.value) == ("float-range", "a", 1e-6)
    assert suspicion.severity == math.inf
    assert suspicion.change == Change(raised=(("a", FP32),))
    assert floats("int8/int8", **{where: {"overflow_share": 1e-6}}) == []


def test_the_text_names_the_largest_number_and_the_end_of_the_format() -> None:
    (suspicion,) = floats("fp16", {"overflow_share": 0.25, "seen": (-81000, 3)})
    assert "25.00%" in suspicion.text
    assert "8.1e+04" in suspicion.text
    assert "65504" in suspicion.text


@pytest.mark.parametrize(
    ("precision", "sqnr_db", "suspected"),
    # Half of 11 and of 8 bits at 6.0206 dB each: 33.11 and 24.08 dB.
    [("fp16", 33.1, True), ("fp16", 33.2, False), ("bf16", 24.0, True), ("bf16", 24.1, False), ("fp32", 0.0, False)],
)
def test_a_float_layer_has_to_keep_half_of_its_formats_bits(precision, sqnr_db, suspected) -> None:
    for place in ("read", "gives"):
        suspicions = floats(precision, **{place: {"sqnr_db": sqnr_db}})
        assert bool(suspicions) == suspected
        if suspected:
            assert suspicions[0].severity == pytest.approx(10 ** (-sqnr_db / 10))


def test_the_rounding_of_stored_integers_is_no_matter_of_float_ranges() -> None:
    assert floats("int4/fp16", gives={"sqnr_db": 15}) == []
    assert len(floats("int4/fp16", {"sqnr_db": 15})) == 1


def test_numbers_that_came_in_not_finite_are_another_layers_fault() -> None:
    assert floats("fp16", gives={"not_finite": 7}) == []
    (suspicion,) = floats("fp16", gives={"not_finite": 7, "sqnr_db": -math.inf})
    assert (suspicion.statistic, suspicion.value, suspicion.severity) == ("not_finite", 7, math.inf)


@torch.no_grad()
def test_stored_integers_that_stand_for_more_than_fp16_holds_are_found() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    net[0].weight.mul_(4e5)  # up to 200,000, times inputs of a thousandth
    batches = [(numbers(32, 4, seed=s) / 1000,) for s in range(3)]
    subject = subject_of(exportable_of(bundle_of(net, batches), {"0": "int8/fp16", "1": "int8/fp16"}))
    seen = look(subject, [batches[1]])
    assert seen.layers["0"].output.overflow_share == 0
    assert seen.layers["1"].output.not_finite > 0
    (suspicion,) = float_range.detect(seen)
    assert (suspicion.layer, suspicion.statistic) == ("0", "not_finite")


def test_more_than_one_sum_in_ten_thousand_saturates() -> None:
    def suspicions(share):
        return found(evidence("int8/int8", [output(saturated_share=share, accumulator_bits=19)]))

    assert suspicions(1e-4) == []
    (suspicion,) = suspicions(2e-4)
    assert (suspicion.mode, suspicion.layer, suspicion.value) == ("accumulator-saturation", "a", 2e-4)
    assert suspicion.change == Change((Repair("wide_accumulator", "a"),))
    assert "0.02%" in suspicion.text
    assert "19 bits" in suspicion.text


def test_a_join_that_takes_a_bit_is_suspected() -> None:
    def suspicions(bits):
        join = JoinEvidence("add", "a", {"a": 1.0, "b": 2.0**bits}, bits)
        return found(evidence("int8/int8", [output()], joins=[join]))

    assert suspicions(0.99) == []
    (suspicion,) = suspicions(3.0)
    assert (suspicion.mode, suspicion.layer, suspicion.value) == ("join-mismatch", "a", 3.0)
    # 5 bits are left: 6.02 x 5 + 1.76 = 31.86 dB.
    assert suspicion.severity == pytest.approx(10**-3.186, rel=1e-3)
    assert suspicion.change == Change((Repair("own_scale", "a"),))


@given(st.floats(1.0, 40.0))
def test_no_join_or_forced_op_has_more_noise_than_signal(bits) -> None:
    looked = evidence("int8/int8", [output()], joins=[JoinEvidence("add", "a", {}, bits)], forced={"a": bits})
    assert [suspicion.mode for suspicion in found(looked)] == ["join-mismatch", "sensitive-operator"]
    assert all(0 < suspicion.severity <= 1 for suspicion in found(looked))


def test_a_forced_op_of_fewer_than_seven_bits_is_suspected() -> None:
    assert found(evidence("int8/int8", [output()], forced={"a": 0.9})) == []
    (suspicion,) = found(evidence("int8/int8", [output()], forced={"a": 4.0}))
    assert (suspicion.mode, suspicion.value) == ("sensitive-operator", 4.0)
    assert suspicion.change == Change((Repair("unforce", "a"),))
    assert "4.0 bits" in suspicion.text


@torch.no_grad()
def test_bits_of_a_forced_step_are_counted_from_the_results_own_eight_bits() -> None:
    subject = subject_of(exportable_of(picture_bundle(), "int8/int8"))
    stem = subject.model.stem(X)
    own = float(stem.max() - stem.min()) / 255
    seen = look(subject.with_(forced_steps={"stem": 16 * own}), [(X,)])
    assert seen.forced_bits_lost == {"stem": pytest.approx(4.0, abs=1e-3)}
    (suspicion,) = (s for s in found(seen) if s.mode == "sensitive-operator")
    assert suspicion.layer == "stem"
    finer = look(subject.with_(forced_steps={"stem": own / 2}), [(X,)])
    assert finer.forced_bits_lost == {"stem": pytest.approx(-1.0, abs=1e-3)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8/int8"])
def test_healthy_networks_are_above_suspicion(precision) -> None:
    assert found(look(subject_of(exportable_of(picture_bundle(), precision)), [(X,)])) == []


def regains(nats, half=0.001):
    return Effect(nats=nats, nats_interval=Interval(nats - half, nats + half))


def judged(nats, left, explained=()):
    shares = Shares({name: regains(value) for name, value in nats.items()})
    return [(s.layer, s.value) for s in sensitive_operator.judge(shares, left, explained)]


def test_a_layer_far_above_the_others_is_an_operator_that_needs_more_bits() -> None:
    # Of 0.1 nats: shares 0.6, 0.05, 0.04, 0.06; the others' median is 0.05 and their deviation from it 0.01.
    nats = {"a": 0.06, "b": 0.005, "c": 0.004, "d": 0.006}
    assert judged(nats, 0.1) == [("a", pytest.approx(0.6))]
    assert judged(nats, 0.1, {"a"}) == []
    assert judged(nats, 0.1, {"b"}) == [("a", pytest.approx(0.6))]


def test_a_layer_among_its_like_is_none() -> None:
    # The others' median is 0.20 and the deviation 0.02: 0.29 is below 0.20 + 5 x 0.02, 0.31 above.
    others = {"b": 0.018, "c": 0.020, "d": 0.022}
    assert judged({"a": 0.029, **others}, 0.1) == []
    assert judged({"a": 0.031, **others}, 0.1) == [("a", pytest.approx(0.31))]


def test_a_fifth_of_what_is_left_is_the_least_and_it_has_to_be_measured() -> None:
    assert judged({"a": 0.019, "b": 0.0, "c": 0.0}, 0.1) == []
    assert judged({"a": 0.021, "b": 0.0, "c": 0.0}, 0.1) == [("a", pytest.approx(0.21))]
    unsure = Shares({"a": regains(0.05, half=0.06), "b": regains(0.0)})
    assert list(sensitive_operator.judge(unsure, 0.1, ())) == []
    assert judged({"a": 0.02}, 0.0) == []


def off(name, gain=1.0, shift=0.0, sqnr_db=30.0):
    return output(name, joint_gain=np.full(4, gain), joint_shift=np.full(4, shift), sqnr_db=sqnr_db)


def accumulated(*outputs):
    return list(error_accumulation.detect(evidence("int8/int8", outputs)))


@pytest.mark.parametrize(
    ("gain", "shift", "suspected"),
    # 4 bits, 25.84 dB, are a power of 0.0026: a gain or a shift of 0.051.
    [(0.95, 0, False), (0.94, 0, True), (1.06, 0, True), (1, 0.05, False), (1, -0.06, True), (0.96, 0.04, True)],
)
def test_statistics_may_be_off_by_what_four_bits_cost(gain, shift, suspected) -> None:
    suspicions = accumulated(*(off(name, gain, shift) for name in "abc"))
    assert bool(suspicions) == suspected
    if suspected:
        (suspicion,) = suspicions
        assert suspicion.value == pytest.approx((gain - 1) ** 2 + shift**2)
        assert suspicion.change == Change((Repair("reestimate"),))
        assert suspicion.layers == ("a", "b", "c")


def test_two_layers_or_one_with_most_of_the_error_are_their_own_fault() -> None:
    assert accumulated(off("a", 0.9), off("b", 0.9), off("c")) == []
    # 20 dB against twice 30 dB: ten parts of twelve.
    assert accumulated(off("a", 0.9, sqnr_db=20), off("b", 0.9), off("c", 0.9)) == []


def test_the_layers_named_are_those_with_more_than_an_even_part_of_the_errors() -> None:
    quiet = [off(name, 0.9, sqnr_db=50) for name in "cde"]
    (suspicion,) = accumulated(off("a", 0.8), off("b", 0.9), *quiet)
    assert suspicion.layers == ("a", "b")
    assert suspicion.value == pytest.approx(0.04)
    assert "5 layers, most in a" in suspicion.text


def test_networks_without_errors_or_without_numbers_are_no_accumulation() -> None:
    assert accumulated(*(off(name, 0.9, sqnr_db=math.inf) for name in "abc")) == []
    assert accumulated(*(off(name, 0.9, sqnr_db=-math.inf) for name in "abc")) == []


class Adding:
    """Layers whose errors, of equal size, all point one way, or each its own."""

    layers = ("a", "b", "c", "d")

    def __init__(self, is_coherent):
        self.is_coherent = is_coherent

    def measure(self, change):
        count = len(self.layers) - len(change.raised)
        return Outcome(np.full(64, 0.01 * (count**2 if self.is_coherent else count)), None, 0.0)


@pytest.mark.parametrize(("is_coherent", "adds_up"), [(True, True), (False, False)])
def test_errors_add_up_where_together_they_lose_twice_what_they_lose_alone(is_coherent, adds_up) -> None:
    # Three layers lose 9 units together and 3 alone if their errors agree, 3 and 3 if they do not.
    seen = evidence("int8/int8", tuple(off(name, 0.9) for name in "abc"))
    (suspicion,) = error_accumulation.detect(seen)
    raised = Change(raised=tuple((layer, FP32) for layer in Adding.layers))
    assert error_accumulation.adds_up(Adding(is_coherent), seen, suspicion, Change(), raised) == adds_up
