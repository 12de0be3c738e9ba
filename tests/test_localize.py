"""Group testing and effects, on networks whose losses are known sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.diagnose.effects import CAP_NATS, FLOOR_NATS, is_measured, regained
from haq.diagnose.finding import Change, Outcome, Repair
from haq.diagnose.localize import localize
from haq.precision import Precision

FP32 = Precision.parse("fp32")


class Sums:
    """A network in which every layer loses a known divergence, on each sample alike but for a little noise."""

    def __init__(self, losses, undone=None):
        self.losses, self.undone, self.asked = dict(losses), undone or {}, 0
        self.noise = 1e-4 * np.random.default_rng(0).standard_normal(64)

    @property
    def layers(self):
        return tuple(self.losses)

    samples, forwards = 64, 0.0

    def widest(self, layer):
        return FP32

    def fp32(self):
        return Outcome(np.zeros(64), np.ones(64), 1.0)

    def measure(self, change):
        self.asked += 1
        raised = {layer for layer, _ in change.raised}
        lost = {layer: loss for layer, loss in self.losses.items() if layer not in raised}
        for repair in change.repairs:
            if repair.layer in lost:
                lost[repair.layer] -= self.undone.get(repair, 0.0)
        total = sum(lost.values())
        return Outcome(np.maximum(total + self.noise * (total > 0), 0.0), np.ones(64), 1.0)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 120), bad=st.sets(st.integers(0, 119), min_size=1, max_size=3))
def test_the_bad_layers_are_found_in_a_logarithmic_number_of_measurements(n, bad):
    bad = {place % n for place in bad}
    bench = Sums({f"l{i}": 0.1 if i in bad else 0.0 for i in range(n)})
    shares = localize(bench, Change(), bench.layers, most=200)
    found = {layer for layer, effect in shares.layers.items() if is_measured(effect)}
    assert found == {f"l{i}" for i in bad}
    # Eight blocks, then two halves per bad layer and level.
    assert shares.measured <= 8 + 2 * len(bad) * (int(np.ceil(np.log2(-(-n // 8)))) if n > 8 else 0)
    assert shares.of(0.1 * len(bad))[f"l{min(bad)}"] == pytest.approx(1 / len(bad), abs=0.01)


def test_a_healthy_network_costs_one_measurement_per_block():
    bench = Sums({f"l{i}": 0.0 for i in range(48)})
    shares = localize(bench, Change(), bench.layers)
    assert (dict(shares.layers), shares.measured) == ({}, 8)


def test_what_the_base_has_undone_already_is_not_found_again():
    bench = Sums({"a": 0.2, "b": 0.1}, {Repair("clip", "a"): 0.2})
    shares = localize(bench, Change((Repair("clip", "a"),)), bench.layers)
    assert {layer for layer, effect in shares.layers.items() if is_measured(effect)} == {"b"}


def test_effects_are_paired_and_capped():
    before = Outcome(np.array([0.5, np.inf, 0.1, 0.1]), np.array([0.0, 0.0, 1.0, 1.0]), 0.5)
    after = Outcome(np.array([0.1, 0.1, 0.1, 0.1]), np.array([1.0, 1.0, 1.0, 1.0]), 1.0)
    effect = regained(before, after)
    assert effect.nats == pytest.approx((0.4 + CAP_NATS - 0.1) / 4)
    difference = np.array([0.4, CAP_NATS - 0.1, 0.0, 0.0])
    half = 1.959964 * difference.std(ddof=1) / 2
    assert effect.nats_interval.low == pytest.approx(effect.nats - half, rel=1e-5)
    assert effect.points == pytest.approx(50.0)
    assert effect.points_interval.low < 50 < effect.points_interval.high
    assert not is_measured(effect)  # one sample of four carries it


def test_small_or_uncertain_effects_are_none():
    steady = lambda kl: Outcome(np.full(100, kl), np.ones(100), 1.0)  # noqa: E731
    assert is_measured(regained(steady(FLOOR_NATS * 1.01), steady(0.0)))
    assert not is_measured(regained(steady(FLOOR_NATS * 0.99), steady(0.0)))
    assert not is_measured(regained(steady(0.0), steady(1.0)))
    assert not is_measured(regained(Outcome(None, None, 0.2), Outcome(None, None, 0.9)))


def test_without_logits_points_decide():
    wrong, right = np.zeros(50), np.ones(50)
    assert is_measured(regained(Outcome(None, wrong, 0.0), Outcome(None, right, 1.0)))
    assert not is_measured(regained(Outcome(None, wrong, 0.0), Outcome(None, wrong, 0.0)))
