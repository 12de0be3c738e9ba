"""Predicts the drop of unmeasured candidates: the sum of sensitivities, corrected by what has been measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Z95, Measurement
from haq.quality import KL

Floats = NDArray[np.float64]
Levels = NDArray[np.intp]

PRIOR_DEVIATION = 0.5
"""How far one entry of the table may be off, as a fraction of itself: the prior of its correction."""

PRIOR_SLOPE = 25.0
"""Points of drop per unit of divergence before anything is measured. Networks of this repository lose 20 to 30 points
of top-1 accuracy per nat of KL divergence; one observation at full size outweighs it."""

SLOPE_MISFIT = 0.5
"""Relative error of a drop that is read off a divergence, whatever the noise of the measurement."""

LEAST_SPREAD, FIRST_SPREAD = 0.05, 0.25
"""Relative error of the corrected sum: at least, and before there are measurements."""

MOST = 200
"""The newest observations that a fit looks at, so that a proposal stays cheap in long searches."""


@dataclass(frozen=True)
class Observations:
    """What is measured on one target. levels: (n, groups). drops, errors: (n,) points and their standard errors.

    divergences: (n,) of the outputs from FP32's in the table's unit; NaN where they are unknown.
    """

    levels: Levels
    drops: Floats
    errors: Floats
    divergences: Floats

    @classmethod
    def none(cls, groups: int) -> Observations:
        """What is known before the first measurement."""
        empty = np.empty(0)
        return cls(np.empty((0, groups), dtype=np.intp), empty, empty, empty)

    def taken(self, part: slice | NDArray[np.bool_]) -> Observations:
        """Some of them, in order."""
        return Observations(self.levels[part], self.drops[part], self.errors[part], self.divergences[part])


@dataclass(frozen=True)
class Surrogate:
    """A posterior over the divergence of every candidate, and from it over its drop.

    table: (groups, levels) divergences of one group narrowed alone, finite. scale: of their sum. weights: (groups,
    levels) relative correction of every entry. spread: relative error of the corrected sum. slope: points per unit of
    divergence; slope_error: its standard error, which all candidates share, so that it changes no order among them.
    rows, solved: the shares of the observations and their inverse covariance, for the variance.
    """

    table: Floats
    scale: float
    weights: Floats
    spread: float
    slope: float
    rows: Floats = field(repr=False)
    solved: Floats = field(repr=False)
    slope_error: float = SLOPE_MISFIT * PRIOR_SLOPE

    @property
    def corrected(self) -> Floats:
        """(groups, levels) the table as measurements have it; never below a twentieth of itself."""
        return self.table * self.scale * np.maximum(0.05, 1 + self.weights)

    def predict(self, levels: Levels) -> tuple[Floats, Floats]:
        """((n,), (n,)) mean and standard deviation of the drop in points, at this slope; levels: (n, groups)."""
        mean = self.mean(levels)
        shares = _shares(self.table, levels)
        prior = PRIOR_DEVIATION**2
        variance = prior * (shares**2).sum(axis=1)
        if len(self.rows):
            cross = prior * shares @ self.rows.T
            variance = np.maximum(0.0, variance - (cross @ self.solved * cross).sum(axis=1))
        return mean, mean * np.sqrt(variance + self.spread**2)

    def mean(self, levels: Levels) -> Floats:
        """(n,) the mean of `predict` alone, in a hundredth of the time."""
        divergence: Floats = self.corrected[np.arange(len(self.table)), levels].sum(axis=1)
        return self.slope * divergence


def with_slope_error(surrogate: Surrogate, levels: Levels) -> tuple[Floats, Floats]:
    """As `predict`, with the error of the slope in the deviation: what to tell about one candidate alone."""
    mean, deviation = surrogate.predict(levels)
    return mean, np.hypot(deviation, mean / surrogate.slope * surrogate.slope_error)


def finite(losses: Floats) -> Floats:
    """Sensitivities as a table to fit: what is infinite or unknown is ten times as bad as the worst that is known.

    losses: (groups, levels). Such levels are never planned, but another sampler may ask for them.
    """
    known = np.isfinite(losses)
    return np.where(known, losses, 10 * losses[known].max(initial=0.0))


def observed(
    levels: Sequence[Sequence[int]], measurements: Sequence[Measurement], measure: str, groups: int
) -> Observations:
    """Measured candidates as a fit takes them. measure: what the table's divergences are, `kl` or another.

    groups: of the space, so that no candidates at all have a shape too.
    """
    errors = [
        np.nan if m.drop_interval is None else (m.drop_interval.high - m.drop_interval.low) / (2 * Z95)
        for m in measurements
    ]
    known = [m.quality.value(KL) if m.quality is not None and measure == "kl" else None for m in measurements]
    return Observations(
        np.array(levels, dtype=np.intp).reshape(-1, groups),
        np.array([m.drop_points for m in measurements], dtype=np.float64),
        np.array(errors, dtype=np.float64),
        np.array([np.nan if value is None else value for value in known], dtype=np.float64),
    )


def fit(table: Floats, seen: Observations) -> Surrogate:
    """The surrogate after these observations.

    table: (groups, levels) sensitivities, finite, 0 where a level changes nothing. Divergences are
    modelled as scale x sum of table x (1 + correction), each correction normal with PRIOR_DEVIATION: Bayesian linear
    regression of the relative residual on each entry's share of the sum (Rasmussen and Williams 2006, section 2.1), in
    its dual form. Drops are a slope times the divergence: least squares through zero, each weighted by its noise.
    """
    seen = seen.taken(slice(-MOST, None))
    none = Surrogate(
        table, 1.0, np.zeros_like(table), FIRST_SPREAD, PRIOR_SLOPE, np.empty((0, table.size)), np.empty((0, 0))
    )
    sums = table[np.arange(len(table)), seen.levels].sum(axis=1)
    known = np.isfinite(seen.divergences) & (seen.divergences > 0) & (sums > 0)
    if not known.any():
        return _with_slope(none, sums, seen)
    ratio = seen.divergences[known] / sums[known]
    # A few ratios say little about the scale: shrunk towards 1 as by two observations.
    scale = float(np.exp(np.log(ratio).sum() / (len(ratio) + 2)))
    residual = np.clip(ratio / scale - 1, -0.9, 5.0)
    rows = _shares(table, seen.levels[known])
    spread = FIRST_SPREAD
    for _ in range(2):
        covariance = PRIOR_DEVIATION**2 * rows @ rows.T + spread**2 * np.eye(len(rows))
        solved = np.linalg.inv(covariance).astype(np.float64)
        weights = PRIOR_DEVIATION**2 * rows.T @ (solved @ residual)
        left = residual - rows @ weights
        spread = max(LEAST_SPREAD, float(np.sqrt((np.sum(left**2) + FIRST_SPREAD**2) / (len(left) + 1))))
    found = Surrogate(table, scale, weights.reshape(table.shape), spread, PRIOR_SLOPE, rows, solved)
    divergences = np.where(known, seen.divergences, found.corrected[np.arange(len(table)), seen.levels].sum(axis=1))
    return _with_slope(found, divergences, seen)


def _with_slope(surrogate: Surrogate, divergences: Floats, seen: Observations) -> Surrogate:
    usable = np.isfinite(divergences) & (divergences > 0) & np.isfinite(seen.drops)
    d, drops, errors = divergences[usable], seen.drops[usable], seen.errors[usable]
    weight = 1 / (np.nan_to_num(errors) ** 2 + (SLOPE_MISFIT * PRIOR_SLOPE * d) ** 2) if len(d) else d
    # The prior counts as one observation without noise.
    prior = 1 / (SLOPE_MISFIT * PRIOR_SLOPE) ** 2
    precision = prior + float((weight * d**2).sum())
    slope = (PRIOR_SLOPE * prior + float((weight * d * drops).sum())) / precision
    return replace(surrogate, slope=max(0.05 * PRIOR_SLOPE, slope), slope_error=precision**-0.5)


def _shares(table: Floats, levels: Levels) -> Floats:
    """(n, groups x levels) what each entry of the table contributes to a candidate's sum, as a fraction of it."""
    count, width = len(levels), table.shape[1]
    values = table[np.arange(len(table)), levels]
    totals = values.sum(axis=1, keepdims=True)
    shares = np.zeros((count, table.size))
    columns = np.arange(len(table)) * width + levels
    np.put_along_axis(shares, columns, values / np.where(totals > 0, totals, 1.0), axis=1)
    return shares
