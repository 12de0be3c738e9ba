"""The front that a model predicts: the least loss over a grid of budgets of size and latency, alone and together."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haq.allocate import LOSS, AllocationModel, Levels, OutOfTime, allocate, improve
from haq.pareto import non_dominated
from haq.terms import Floats

AXES = ("size_bytes", "latency_ms")
"""What budgets are set for, besides the loss what a point of the front is judged by."""

SLACK = 1e-9
"""Relative to the smallest value of a figure: room for the rounding of sums in a budget that just one point meets."""


def sweep(
    model: AllocationModel,
    limits: Mapping[str, float],
    *,
    points: int = 32,
    mip_rel_gap: float = 0.0,
    time_limit_s: float | None = None,
) -> tuple[Levels, ...]:
    """Points that the model predicts nobody beats in size, latency and loss, within the limits, smallest first.

    limits, mip_rel_gap and time_limit_s (per solution) are those of `allocate`; nothing is within the limits: (). About
    a third of `points` budgets is for size alone, a third for latency alone, and the rest for both, as a grid with a
    finer diagonal. Budgets of one figure halve the step of the curve where it is largest, figure and loss together, so
    that they are dense where the loss is steep. A figure that the model lacks, or that no choice changes, has none.
    """
    axes = tuple(name for name in AXES if name in model.figures and not np.isnan(model.figures[name].constant))
    found = _Found(model, axes, limits, mip_rel_gap, time_limit_s)
    widest = found.least({})
    if widest is None:
        return ()
    curves = {}
    for name in axes:
        low, high = found.smallest(name), float(model.value(name, [widest])[0])
        if low < high:
            curves[name] = (low + SLACK * abs(low), high)
    share = points // 3 if len(curves) > 1 else points
    budgets = {name: _along(found, name, ends, share) for name, ends in curves.items()}
    if len(budgets) > 1:
        for fractions in _joint(points - 2 * share):
            found.least(
                {
                    name: float(np.quantile(values, fraction))
                    for (name, values), fraction in zip(budgets.items(), fractions, strict=True)
                }
            )
    return found.front()


@dataclass
class _Found:
    """Remembers what was found, hence not frozen. solved: a budget for each of some figures -> the best within them."""

    model: AllocationModel
    axes: tuple[str, ...]
    limits: Mapping[str, float]
    mip_rel_gap: float
    time_limit_s: float | None
    solved: list[tuple[Mapping[str, float], Levels]] = field(default_factory=list)

    def least(self, budgets: Mapping[str, float]) -> Levels | None:
        """The least loss within budgets and limits; None where there is none, or was none in time."""
        limits = {**self.limits, **{name: min(b, self.limits.get(name, b)) for name, b in budgets.items()}}
        for wider, levels in self.solved:
            # The best within wider budgets is the best within these, when it meets them.
            if all(limits.get(name, math.inf) <= bound for name, bound in wider.items()) and all(
                self.model.value(name, [levels])[0] <= bound for name, bound in limits.items()
            ):
                return levels
        try:
            best = allocate(self.model, limits, mip_rel_gap=self.mip_rel_gap, time_limit_s=self.time_limit_s)
        except OutOfTime:
            return None
        if best is not None:
            # Of several with the same loss the one that costs least.
            best = improve(self.model, best, limits, self.losses)
            self.solved.append((limits, best))
        return best

    def smallest(self, name: str) -> float:
        """The smallest value of a figure within the limits; with too little time, of the points that are known."""
        known = [levels for _, levels in self.solved]
        with contextlib.suppress(OutOfTime):
            best = allocate(
                self.model, self.limits, minimize=name, mip_rel_gap=self.mip_rel_gap, time_limit_s=self.time_limit_s
            )
            known += [] if best is None else [best]
        return float(self.model.value(name, known).min())

    def losses(self, points: NDArray[np.intp]) -> Floats:
        """(points, 1 + axes) what a point is judged by: the loss, then its figures."""
        return np.stack([self.model.value(name, points) for name in (LOSS, *self.axes)], axis=1)

    def front(self) -> tuple[Levels, ...]:
        points = np.array(list(dict.fromkeys(levels for _, levels in self.solved)), dtype=np.intp)
        losses = self.losses(points)
        kept = non_dominated(losses)
        order = np.lexsort(losses[kept].T[[0, *range(len(self.axes), 0, -1)]])
        return tuple(map(tuple, points[kept][order].tolist()))


def _along(found: _Found, name: str, ends: tuple[float, float], count: int) -> list[float]:
    """Solves for `count` budgets of one figure between two ends, which are among them; returns them, ascending."""
    solved = {}
    for budget in ends:
        if (levels := found.least({name: budget})) is not None:
            solved[budget] = float(found.model.value(LOSS, [levels])[0])
    width, height = ends[1] - ends[0], max(abs(solved.get(ends[0], 0.0) - solved.get(ends[1], 0.0)), 1e-300)
    for _ in range(count - 2):
        budgets = sorted(solved)
        steps = [(b - a) / width + (solved[a] - solved[b]) / height for a, b in itertools.pairwise(budgets)]
        if not steps:
            break
        i = int(np.argmax(steps))
        middle = (budgets[i] + budgets[i + 1]) / 2
        levels = found.least({name: middle})
        if levels is None:
            break
        solved[middle] = float(found.model.value(LOSS, [levels])[0])
    return sorted(solved)


def _joint(count: int) -> list[tuple[float, float]]:
    """Fractions of two curves: a square grid of at most `count` points, and what is left along its diagonal."""
    side = math.isqrt(count)
    inner = [(i + 1) / (side + 1) for i in range(side)]
    rest = count - side**2
    return [(a, b) for a in inner for b in inner] + [((i + 0.5) / rest,) * 2 for i in range(rest)]
