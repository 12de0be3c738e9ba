"""Expected hypervolume gain against hand arithmetic, the exact gain, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.expected import expected_gain
from haq.pareto import hypervolume

REFERENCE = (1.0, 1.0, 1.0)
UNIT = st.floats(0, 1.2, allow_nan=False)


def test_a_certain_point_over_an_empty_front_gains_its_box() -> None:
    gain = expected_gain(np.array([[0.5, 0.25]]), np.array([0.2]), np.zeros(1), np.empty((0, 3)), REFERENCE)
    assert gain == pytest.approx([0.5 * 0.75 * 0.8])


def test_an_uncertain_point_over_an_empty_front_gains_the_mean_excess() -> None:
    # E[max(0, 1 - D)] for D ~ N(1, 0.1) is 0.1 / sqrt(2 pi).
    gain = expected_gain(np.array([[0.0, 0.0]]), np.array([1.0]), np.array([0.1]), np.empty((0, 3)), REFERENCE)
    assert gain == pytest.approx([0.1 / np.sqrt(2 * np.pi)])


def test_a_dominated_certain_point_gains_nothing() -> None:
    front = np.array([[0.2, 0.2, 0.2]])
    assert expected_gain(np.array([[0.3, 0.3]]), np.array([0.3]), np.zeros(1), front, REFERENCE) == pytest.approx([0])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(UNIT, UNIT, UNIT), max_size=8),
    st.lists(st.tuples(UNIT, UNIT, UNIT), min_size=1, max_size=4),
)
def test_without_uncertainty_the_gain_is_that_of_the_hypervolume(
    front: list[tuple[float, ...]], points: list[tuple[float, ...]]
) -> None:
    known, asked = np.array(front).reshape(-1, 3), np.array(points)
    gains = expected_gain(asked[:, :2], asked[:, 2], np.zeros(len(asked)), known, REFERENCE)
    before = hypervolume(known, REFERENCE)
    after = [hypervolume(np.vstack([known, point]), REFERENCE) - before for point in asked]
    assert gains == pytest.approx(after, abs=1e-12)


def test_the_expectation_is_the_mean_of_simulated_gains() -> None:
    rng = np.random.default_rng(0)
    front, asked = rng.random((6, 3)), rng.random((3, 2))
    mean, deviation = np.array([0.2, 0.5, 0.8]), np.array([0.1, 0.3, 0.05])
    gains = expected_gain(asked, mean, deviation, front, REFERENCE)
    draws = rng.normal(mean, deviation, size=(4000, 3))
    before = hypervolume(front, REFERENCE)
    simulated = [
        np.mean([hypervolume(np.vstack([front, [*asked[i], d]]), REFERENCE) - before for d in draws[:, i]])
        for i in range(3)
    ]
    assert gains == pytest.approx(simulated, rel=0.08, abs=2e-3)
