"""The surrogate against hand arithmetic and against networks whose true effects are known."""

from __future__ import annotations

import numpy as np
import pytest

from haq.surrogate import PRIOR_DEVIATION, PRIOR_SLOPE, Observations, fit, with_slope_error

TABLE = np.array([[0.4, 0.1, 0.0], [0.2, 0.05, 0.0], [0.1, 0.02, 0.0]])


def observed(levels: np.ndarray, divergences: np.ndarray, drops: np.ndarray | None = None) -> Observations:
    found = PRIOR_SLOPE * divergences if drops is None else drops
    return Observations(levels, found, np.full(len(levels), 0.5), divergences)


def nothing() -> Observations:
    return observed(np.empty((0, 3), dtype=np.intp), np.empty(0))


def test_before_measurements_the_drop_is_the_sum_times_the_prior_slope() -> None:
    mean, deviation = fit(TABLE, nothing()).predict(np.array([[0, 1, 2], [2, 2, 2]]))
    assert mean == pytest.approx([PRIOR_SLOPE * 0.45, 0])
    # Shares 0.4/0.45 and 0.05/0.45, each off by PRIOR_DEVIATION, beside a relative spread of 0.25.
    relative = np.sqrt(PRIOR_DEVIATION**2 * (0.4**2 + 0.05**2) / 0.45**2 + 0.25**2)
    assert deviation == pytest.approx([PRIOR_SLOPE * 0.45 * relative, 0])


def test_the_deviation_is_the_posteriors_by_the_formula_and_the_mean_alone_is_the_mean() -> None:
    """Rasmussen and Williams 2006, eq. 2.11: x' A^-1 x with A = Phi' Phi / spread^2 + I / PRIOR_DEVIATION^2."""
    rng = np.random.default_rng(3)
    levels = np.array([[0, 1, 2], [1, 0, 0], [0, 0, 1], [1, 1, 0], [2, 0, 1]])
    sums = TABLE[np.arange(3), levels].sum(axis=1)
    model = fit(TABLE, observed(levels, sums * rng.uniform(0.7, 1.4, 5)))
    points = np.array([[0, 0, 0], [1, 2, 1], [2, 1, 0]])
    at = np.zeros((8, 3, 3))
    for row, point in zip(at, np.concatenate([levels, points]), strict=True):
        row[range(3), point] = TABLE[range(3), point] / TABLE[range(3), point].sum()
    seen, new = at[:5].reshape(5, 9), at[5:].reshape(3, 9)
    # fit's `solved` belongs to the spread before the last update; the formula holds for whatever noise it stands for.
    noise = np.linalg.inv(model.solved) - PRIOR_DEVIATION**2 * seen @ seen.T
    precision = seen.T @ np.linalg.inv(noise) @ seen + np.eye(9) / PRIOR_DEVIATION**2
    variance = np.diag(new @ np.linalg.inv(precision) @ new.T)
    mean, deviation = model.predict(points)
    assert deviation == pytest.approx(mean * np.sqrt(variance + model.spread**2))
    assert (model.mean(points) == mean).all()


def test_measurements_correct_entries_of_the_table() -> None:
    rng = np.random.default_rng(1)
    truth = TABLE * np.array([[2.0], [0.5], [1.0]])
    levels = rng.integers(0, 3, size=(60, 3))
    levels = levels[TABLE[np.arange(3), levels].sum(axis=1) > 0]
    true = truth[np.arange(3), levels].sum(axis=1)
    model = fit(TABLE, observed(levels, true))
    every = np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(3)][:-1])
    expected = PRIOR_SLOPE * truth[np.arange(3), every].sum(axis=1)
    before, after = fit(TABLE, nothing()).predict(every)[0], model.predict(every)[0]
    assert np.abs(after / expected - 1).mean() < 0.4 * np.abs(before / expected - 1).mean()
    assert model.corrected[0, 0] > 1.5 * TABLE[0, 0]
    assert model.corrected[1, 0] < 0.75 * TABLE[1, 0]


def test_uncertainty_shrinks_near_what_was_measured() -> None:
    levels = np.array([[0, 2, 2]] * 4)
    model = fit(TABLE, observed(levels, np.full(4, 0.4)))
    (near, far), before = model.predict(np.array([[0, 2, 2], [2, 0, 2]]))[1], fit(TABLE, nothing()).predict(levels)[1]
    assert near < 0.4 * before[0]
    assert far / (PRIOR_SLOPE * 0.2) > 0.4


def test_the_slope_follows_measured_drops() -> None:
    levels = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 0]])
    divergences = TABLE[np.arange(3), levels].sum(axis=1)
    model = fit(TABLE, Observations(levels, 60 * divergences, np.full(3, 0.01), divergences))
    assert 40 < model.slope < 60


def test_without_divergences_drops_alone_teach_the_slope() -> None:
    levels = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 0]])
    sums = TABLE[np.arange(3), levels].sum(axis=1)
    model = fit(TABLE, Observations(levels, 5 * sums, np.full(3, 0.01), np.full(3, np.nan)))
    assert model.slope < 15
    assert model.corrected == pytest.approx(TABLE)


def test_levels_that_change_nothing_predict_no_drop() -> None:
    mean, deviation = fit(TABLE, observed(np.array([[2, 2, 2]]), np.array([0.0]))).predict(np.array([[2, 2, 2]]))
    assert mean == pytest.approx([0])
    assert deviation == pytest.approx([0])


def test_the_error_of_the_slope_is_told_beside_the_rest() -> None:
    model = fit(TABLE, nothing())
    levels = np.array([[0, 1, 2]])
    mean, deviation = with_slope_error(model, levels)
    # The prior slope may be off by half of itself: 0.45 x 12.5 points, beside what `predict` says.
    assert deviation == pytest.approx(np.hypot(model.predict(levels)[1], 0.45 * 12.5))
    assert mean == pytest.approx([PRIOR_SLOPE * 0.45])
