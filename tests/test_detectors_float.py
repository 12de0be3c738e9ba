"""Detectors of floats, sums, joins, sensitive operators and accumulated errors, on evidence written by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_detectors import OPERAND, OUTPUT, WEIGHT, evidence
from test_localize import Sums

from haq.accuracy import Interval
from haq.diagnose import (
    accumulator_saturation,
    error_accumulation,
    float_range,
    join_mismatch,
    sensitive_operator,
)
from haq.diagnose.evidence import Evidence, JoinEvidence, LayerEvidence
from haq.diagnose.finding import Change, Effect, Outcome, Repair, Suspicion
from haq.diagnose.localize import Shares
from haq.precision import Assignment, Precision
from haq.workload import Workload

FP32 = Precision.parse("fp32")
BITS_DB = 6.0206


def floats(precision="fp16", **output):
    """One layer in floats: what it reads, and what it gives."""
    fmt = Precision.parse(precision)
    read = replace(OPERAND, format=fmt.activation, range=(-65504, 65504), sqnr_db=70, best_sqnr_db=70)
    looked = evidence(read, replace(WEIGHT, format=fmt.weight), replace(OUTPUT, **{"sqnr_db": 68, **output}))
    layer = replace(looked.layers["a"], precision=fmt)
    return replace(looked, layers={"a": layer}, executed=Assignment.of({"a": fmt}))


def of_layers(**outputs):
    """Layers in one precision each: name -> (formats, output)."""
    layers = {
        name: LayerEvidence(name, Precision.parse(formats), (), None, replace(output, layer=name))
        for name, (formats, output) in outputs.items()
    }
    executed = Assignment.of({name: layer.precision for name, layer in layers.items()})
    return Evidence(Workload("net", (("x", (4,)),), (), ()), executed, layers, (), 64)


# float-range


def test_one_number_beyond_fp16_is_enough() -> None:
    (suspicion,) = float_range.detect(floats(overflow_share=1e-9, largest=70_000.0))
    assert (suspicion.statistic, suspicion.value, suspicion.severity) == ("overflow_share", 1e-9, math.inf)
    assert suspicion.change == Change(raised=(("a", FP32),))
    assert "the largest is 7e+04, and fp16 ends at 65504" in suspicion.text


def test_what_it_reads_overflows_as_well() -> None:
    looked = floats()
    operand = replace(looked.layers["a"].operands[0], overflow_share=0.25, seen=(-1e6, 3.0))
    looked = replace(looked, layers={"a": replace(looked.layers["a"], operands=(operand,))})
    (suspicion,) = float_range.detect(looked)
    assert suspicion.value == 0.25
    assert "1e+06" in suspicion.text


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 5.5), ("bf16", 4)])
def test_half_of_the_bits_have_to_be_left(precision, bits) -> None:
    assert not list(float_range.detect(floats(precision, sqnr_db=bits * BITS_DB + 0.01)))
    (suspicion,) = float_range.detect(floats(precision, sqnr_db=bits * BITS_DB - 0.01, underflow_share=0.125))
    assert suspicion.statistic == "signal_db"
    assert suspicion.severity == pytest.approx(10 ** (-(bits * BITS_DB - 0.01) / 10))
    assert "12.50% of its numbers become zero" in suspicion.text


def test_integers_stored_for_a_float_layer_are_not_its_fault() -> None:
    """int4 weights leave 20 dB by themselves; of such a layer only what it reads counts."""
    assert not list(float_range.detect(floats("int4/fp16", sqnr_db=20)))
    looked = floats("int4/fp16", sqnr_db=20)
    operand = replace(looked.layers["a"].operands[0], sqnr_db=20)
    looked = replace(looked, layers={"a": replace(looked.layers["a"], operands=(operand,))})
    assert [s.value for s in float_range.detect(looked)] == [20]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8/int8"])
def test_other_formats_have_no_float_range(precision) -> None:
    assert not list(float_range.detect(floats(precision, sqnr_db=-math.inf, overflow_share=1.0, not_finite=3)))


def test_where_numbers_break_only_in_the_quantized_network_the_first_layer_is_suspected() -> None:
    fine, broken = replace(OUTPUT, sqnr_db=68), replace(OUTPUT, sqnr_db=68, not_finite=5)
    looked = of_layers(a=("fp16", fine), b=("fp16", broken), c=("fp16", broken))
    (suspicion,) = float_range.detect(looked)
    assert (suspicion.layer, suspicion.statistic, suspicion.value) == ("b", "not_finite", 5)
    assert not list(float_range.detect(of_layers(a=("int8", broken), b=("fp16", broken))))  # it came from before


def test_what_overflows_is_one_suspicion_and_those_behind_it_are_none() -> None:
    over = replace(OUTPUT, sqnr_db=-math.inf, overflow_share=0.5, not_finite=8)
    behind = replace(OUTPUT, sqnr_db=68, not_finite=8)
    assert [s.layer for s in float_range.detect(of_layers(a=("fp16", over), b=("fp16", behind)))] == ["a"]


# accumulator-saturation


def test_one_sum_in_ten_thousand_may_be_cut_off() -> None:
    assert not list(accumulator_saturation.detect(evidence(output=replace(OUTPUT, saturated_share=1e-4))))
    output = replace(OUTPUT, saturated_share=0.0125, accumulator_bits=18)
    (suspicion,) = accumulator_saturation.detect(evidence(output=output))
    assert (suspicion.layer, suspicion.value, suspicion.severity) == ("a", 0.0125, 0.0125)
    assert suspicion.text == "1.25% of the sums of a do not fit their accumulator; the largest takes 18 bits"
    assert suspicion.change == Change((Repair("wide_accumulator", "a"),))


# join-mismatch


@given(st.floats(0, 12))
def test_a_join_costs_from_one_bit_on(bits) -> None:
    join = JoinEvidence("add", "a", {"a": 1.0, "b": 2.0**bits}, bits)
    found = list(join_mismatch.detect(replace(evidence(), joins=(join,))))
    assert len(found) == (bits >= 1)
    for suspicion in found:
        # Each bit doubles the step and quadruples the noise, which 8 bits leave 49.92 dB below the signal.
        assert suspicion.severity == pytest.approx(min(10 ** (-(8 * BITS_DB + 1.76) / 10) * 4**bits, 1))
        assert suspicion.change == Change((Repair("own_scale", "a"),))


# sensitive-operator


def test_an_operator_may_be_forced_to_seven_bits_and_a_little() -> None:
    found = sensitive_operator.detect(replace(evidence(), forced_bits_lost={"a": 0.99, "b": 1.0, "c": 3.5}))
    b, c = found
    assert (b.layer, b.value, c.layer, c.value) == ("b", 1.0, "c", 3.5)
    assert c.text == "the op behind c is forced to 4.5 bits"
    assert c.severity / b.severity == pytest.approx(4**2.5)
    assert c.change == Change((Repair("unforce", "c"),))


def shares(**nats):
    certain = {name: Effect(nats=value, nats_interval=Interval(value / 2, 2 * value)) for name, value in nats.items()}
    return Shares(certain, len(certain))


def test_a_layer_far_above_the_others_is_sensitive() -> None:
    # Shares of 0.5: the others' 0.02, 0.04, 0.06: median 0.04, deviation 0.02: 0.04 + 5 x 0.02 = 0.14 < 0.6
    measured = shares(a=0.01, b=0.3, c=0.02, d=0.03)
    (suspicion,) = sensitive_operator.judge(measured, 0.5, ())
    assert (suspicion.layer, suspicion.statistic) == ("b", "share")
    assert suspicion.value == pytest.approx(0.6)
    assert suspicion.severity == 0.3
    assert suspicion.change == Change(raised=(("b", FP32),))
    assert "60% of what is left of the loss back, others 4%" in suspicion.text


def test_a_layer_in_which_a_cause_was_proved_is_not_sensitive_as_well() -> None:
    assert not list(sensitive_operator.judge(shares(a=0.01, b=0.3, c=0.02), 0.5, {"b"}))


def test_layers_that_lose_alike_are_none_of_them_sensitive() -> None:
    assert not list(sensitive_operator.judge(shares(a=0.30, b=0.28, c=0.25, d=0.2), 1.0, ()))


def test_less_than_a_fifth_is_not_far_above() -> None:
    assert not list(sensitive_operator.judge(shares(a=0.001, b=0.19, c=0.001), 1.0, ()))
    assert [s.layer for s in sensitive_operator.judge(shares(a=0.001, b=0.2, c=0.001), 1.0, ())] == ["b"]


def test_the_only_layer_tried_is_compared_with_nothing() -> None:
    assert [s.layer for s in sensitive_operator.judge(shares(a=0.3), 0.5, ())] == ["a"]


def test_uncertain_shares_and_nothing_left_prove_nothing() -> None:
    vague = Shares({"a": Effect(nats=0.3, nats_interval=Interval(-0.1, 0.7))}, 1)
    assert not list(sensitive_operator.judge(vague, 0.5, ()))
    assert not list(sensitive_operator.judge(shares(a=0.3), 0.0, ()))
    assert not list(sensitive_operator.judge(Shares(), 0.5, ()))


# error-accumulation

MOVED = replace(OUTPUT, sqnr_db=30, joint_gain=np.full(4, 0.9), joint_shift=np.full(4, 0.1))
"""Gains of 0.9 and shifts of 0.1: 0.01 + 0.01 of FP32's variance, 17 dB below; the limit is 25.84 dB, 0.0026."""


def test_drift_is_the_power_of_both_in_units_of_the_signal() -> None:
    assert error_accumulation.drift(MOVED) == pytest.approx(0.02)
    assert error_accumulation.drift(OUTPUT) == 0
    unknown = replace(OUTPUT, joint_gain=np.array([np.nan, 1.2]), joint_shift=np.array([np.nan, 0.0]))
    assert error_accumulation.drift(unknown) == pytest.approx(0.02)
    assert error_accumulation.drift(replace(OUTPUT, joint_gain=np.ones(0), joint_shift=np.ones(0))) == 0
    limit = error_accumulation.THRESHOLD_POWER
    assert limit == pytest.approx(10**-2.584, rel=1e-3)


def test_three_layers_off_of_which_none_has_half_the_error_accumulate() -> None:
    rows = dict.fromkeys("abc", ("int8", MOVED))
    (suspicion,) = error_accumulation.detect(of_layers(**rows, d=("int8", replace(OUTPUT, sqnr_db=60))))
    assert suspicion.layers == ("a", "b", "c")  # d has a thousandth of an even part
    assert suspicion.value == pytest.approx(0.02)
    assert suspicion.change == Change((Repair("reestimate"),))
    assert "off in 3 layers, most in a (17.0 dB below the signal); no layer has more than 33%" in suspicion.text


@pytest.mark.parametrize(
    "rows",
    [
        {"a": MOVED, "b": MOVED, "c": OUTPUT},  # two are their own fault
        {"a": replace(MOVED, sqnr_db=20), "b": MOVED, "c": MOVED},  # 0.01 of 0.012 is in one
        {"a": replace(MOVED, sqnr_db=-math.inf), "b": MOVED, "c": MOVED},
        {name: replace(MOVED, sqnr_db=math.inf) for name in "abc"},
        {name: replace(MOVED, joint_gain=np.full(4, 0.96), joint_shift=np.full(4, 0.03)) for name in "abc"},
        {},
    ],
)
def test_other_pictures_do_not_accumulate(rows) -> None:
    assert not list(error_accumulation.detect(of_layers(**{n: ("int8", output) for n, output in rows.items()})))


class Squares(Sums):
    """A network in which errors point the same way: together they lose the square of their sum."""

    def measure(self, change):
        self.asked += 1
        raised = {layer for layer, _ in change.raised}
        kept = sum(loss for layer, loss in self.losses.items() if layer not in raised) ** 2
        return Outcome(np.maximum(kept + self.noise * (kept > 0), 0), np.ones(64), 1.0)


def adds_up(bench, layers, tell=lambda left: None):
    text = Suspicion("error-accumulation", "a", "s", 1, 0, 1, "", layers=tuple(layers))
    raised = Change(raised=tuple((layer, FP32) for layer in bench.layers))
    return error_accumulation.adds_up(bench, text, Change(), raised, tell)


def test_errors_that_point_the_same_way_add_up_and_independent_ones_do_not() -> None:
    # Squares: (0.4)^2 = 0.16 against 4 x 0.1^2 = 0.04; Sums: 0.4 against 0.4. `e` loses much and is in FP32.
    assert adds_up(Squares({**dict.fromkeys("abcd", 0.1), "e": 9.0}), "abcd")
    assert not adds_up(Sums({**dict.fromkeys("abcd", 0.1), "e": 9.0}), "abcd")
    assert adds_up(Squares({"a": 0.105, "b": 0.095, "c": 0.01}), "abc")  # 0.0441 against 0.0201
    assert not adds_up(Squares({"a": 0.2, "b": 0.1}), "ab")  # 0.09 against 0.05


def test_measuring_ends_once_single_layers_lose_too_much() -> None:
    bench, left = Sums(dict.fromkeys("abcdefgh", 0.1)), []
    assert not adds_up(bench, "abcdefgh", left.append)
    # FP32, all, and singles until 2 x 0.1 n > 0.8 (give or take the noise): 4 or 5 of 8.
    assert left in ([8, 7, 6, 5, 4, 3], [8, 7, 6, 5, 4])
    assert bench.asked == 1 + len(left)


def test_layers_that_lose_nothing_do_not_add_up() -> None:
    assert not adds_up(Sums(dict.fromkeys("abc", 0.0)), "abc")
