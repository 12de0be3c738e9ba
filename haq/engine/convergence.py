"""Tells when a search has converged: no hypervolume gain beyond the noise of the measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Z95
from haq.front import Point
from haq.pareto import hypervolume, non_dominated

PATIENCE = 20
"""Measured candidates without a gain after which a search has converged."""


def has_converged(
    points: Sequence[Sequence[Point]], counts: Sequence[int], reference: Sequence[Sequence[float]]
) -> bool:
    """Whether no target's front gained more than its noise since it was PATIENCE measurements younger.

    points: per target, the feasible points measured in full, in order. counts: per target, how many of them were there
    PATIENCE measurements ago. reference: per target, the fixed point of its hypervolume. A target without any feasible
    point has not converged: there is still everything to gain.
    """
    rows = zip(points, counts, reference, strict=True)
    return all(now and _gain(now, before, ref) <= noise(now, ref) for now, before, ref in rows)


def _gain(points: Sequence[Point], before: int, reference: Sequence[float]) -> float:
    now = _losses(points)
    return hypervolume(now, reference) - hypervolume(now[:before], reference)


def noise(points: Sequence[Point], reference: Sequence[float]) -> float:
    """What the front's hypervolume gains if its drops were smaller by their standard error, divided by the square root
    of its size: errors of single points average out over a front. 0 where measurements have no interval."""
    losses = _losses(points)
    if not len(losses):
        return 0.0
    members = [point for point, kept in zip(points, non_dominated(losses), strict=True) if kept]
    errors = [standard_error_points(point) for point in members]
    known = [error for error in errors if error is not None]
    if not known:
        return 0.0
    shift = float(np.median(known)) / np.sqrt(len(members))
    return hypervolume(losses - [0.0, 0.0, shift], reference) - hypervolume(losses, reference)


def standard_error_points(point: Point) -> float | None:
    """The standard error of the point's drop; None where it has no interval."""
    measurement = point.result.measurement
    if measurement is None or measurement.drop_interval is None:
        return None
    return (measurement.drop_interval.high - measurement.drop_interval.low) / (2 * Z95)


def _losses(points: Sequence[Point]) -> NDArray[np.float64]:
    return np.array([point.losses for point in points], dtype=np.float64).reshape(-1, 3)
