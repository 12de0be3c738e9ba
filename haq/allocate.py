"""Chooses every group's level at once: the least loss, or the least of any cost, under limits on sums of terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, hstack, vstack

from haq.errors import InputError, lookup
from haq.linear import Available, Program, linearize
from haq.quiet import silent_stdout
from haq.terms import Floats, Terms

Levels = tuple[int, ...]

LOSS, PEAK = "loss", "activation_peak_bytes"
"""The figures of a model besides those that it names itself."""

SCALE = 1e3
"""The largest entry of a row. HiGHS takes 1e-6 for nothing, wherever it looks: a billionth of that entry."""

ROUNDING = 1e-12
"""Relative to a limit: what sums in another order may differ by. A limit that is exceeded by less is met."""

ATTEMPTS = 16
"""Times that a limit is moved inwards, each time by GROWTH times as much: the solver sees no excess of a billionth."""

GROWTH = 8.0


class OutOfTime(RuntimeError):
    """The time limit passed before the solver had any solution."""


@dataclass(frozen=True)
class AllocationModel:
    """What a choice of one level per group is predicted to lose and to cost.

    loss: (groups, levels), infinite or NaN where a group has no such level. figures: sums over the same groups, by
    name. peak: sums of which the largest is `activation_peak_bytes`; where there are none, that figure is no limit.
    """

    loss: Floats
    figures: Mapping[str, Terms]
    peak: tuple[Terms, ...] = ()

    @property
    def available(self) -> Available:
        """Per group, the levels that it has."""
        return tuple(np.flatnonzero(np.isfinite(row)) for row in self.loss)

    def sums(self, name: str) -> tuple[Terms, ...]:
        """The sums of which the largest is the figure; raises InputError when there is no such figure."""
        one = {LOSS: Terms(0.0, tuple(self.loss)), **self.figures}
        return lookup({PEAK: self.peak, **{name: (terms,) for name, terms in one.items()}}, name, "figure")

    def value(self, name: str, points: ArrayLike) -> Floats:
        """(points,) the figure of each point, NaN where it is unknown. points: (points, groups) levels."""
        totals = [terms.total(points) for terms in self.sums(name)]
        return np.asarray(np.max(totals, axis=0) if totals else np.zeros(len(np.asarray(points))), dtype=np.float64)


def allocate(
    model: AllocationModel,
    limits: Mapping[str, float],
    *,
    minimize: str | Mapping[str, float] = LOSS,
    mip_rel_gap: float = 0.0,
    time_limit_s: float | None = None,
) -> Levels | None:
    """The levels with the least of a figure, or of a weighted sum of figures, among those within upper limits.

    limits, minimize: by name, `loss`, one of `model.figures` or `activation_peak_bytes`. None when nothing is within
    the limits. What is unknown (NaN) is within none and never the least. A returned point meets every limit by
    `Terms.total`, up to ROUNDING. With mip_rel_gap 0 it is the best, but that a point within a few billionths of a
    limit's largest term may be taken for one beyond it; otherwise it is worse by at most that share of what it has
    above the smallest conceivable sum. After time_limit_s seconds it is the best so far. Raises InputError on unknown
    names and figures, OutOfTime when nothing was found in time, RuntimeError when the solver fails.
    """
    weights = {minimize: 1.0} if isinstance(minimize, str) else minimize
    for name in (*limits, *weights):
        if any(np.isnan(terms.constant) for terms in model.sums(name)):
            raise InputError(f"{name} is unknown whatever is chosen", expected="a figure whose terms are known")
    if not len(model.loss):
        # The solver takes no program without columns.
        return () if all(model.value(name, [()])[0] <= bound for name, bound in limits.items()) else None
    if not all(len(levels) for levels in model.available):
        return None
    moved = dict(limits)
    for attempt in range(ATTEMPTS):
        found = _solve(model, moved, weights, _Effort(mip_rel_gap, time_limit_s))
        if found is None:
            return None
        over = {name: float(model.value(name, [found])[0]) - bound for name, bound in limits.items()}
        over = {name: excess for name, excess in over.items() if excess > ROUNDING * abs(limits[name])}
        if not over:
            return improve(model, found, limits, lambda points: _weighted(model, weights, points)[:, None])
        moved |= {name: moved[name] - 2 * GROWTH**attempt * excess for name, excess in over.items()}
    raise RuntimeError(f"every solution lies beyond its limits, the last one by {over}")


def improve(
    model: AllocationModel, start: Levels, limits: Mapping[str, float], losses: Callable[[NDArray[np.intp]], Floats]
) -> Levels:
    """The point where no change of one group within the limits lowers a loss without raising another.

    losses: (points, groups) -> (points, losses). It settles what is too small for the solver to see.
    """
    group_of = np.repeat(np.arange(len(start)), [len(levels) for levels in model.available])
    level_of = np.concatenate([np.zeros(0, dtype=np.intp), *model.available])
    point, best = np.array(start, dtype=np.intp), losses(np.array([start], dtype=np.intp))[0]
    while True:
        trials = np.tile(point, (len(group_of), 1))
        trials[np.arange(len(group_of)), group_of] = level_of
        values = losses(trials)
        better = (values <= best).all(axis=1) & (values < best).any(axis=1)
        trials, values = trials[better], values[better]
        for name, bound in limits.items():
            within = model.value(name, trials) <= bound
            trials, values = trials[within], values[within]
        if not len(trials):
            return tuple(point.tolist())
        chosen = np.lexsort(values.T[::-1])[0]
        point, best = trials[chosen], values[chosen]


def _weighted(model: AllocationModel, weights: Mapping[str, float], points: NDArray[np.intp]) -> Floats:
    total = np.zeros(len(points))
    for name, factor in weights.items():
        total += factor * model.value(name, points)
    return total


@dataclass(frozen=True)
class _Effort:
    mip_rel_gap: float
    time_limit_s: float | None


def _solve(
    model: AllocationModel, limits: Mapping[str, float], weights: Mapping[str, float], effort: _Effort
) -> Levels | None:
    """One solution of the integer program, which may exceed the limits by the solver's tolerance."""
    bounded = [(terms, bound) for name, bound in limits.items() for terms in model.sums(name)]
    wanted = [(terms, factor) for name, factor in weights.items() if name != PEAK for terms in model.sums(name)]
    steps = model.peak if PEAK in weights else ()
    program = linearize(model.available, [*(t for t, _ in bounded), *(t for t, _ in wanted), *steps])
    bounds = np.array([bound for _, bound in bounded])
    upper = bounds + ROUNDING * np.abs(bounds) - program.constants[: len(bounded)]
    rows, goals, step_rows = np.split(program.rows, [len(bounded), len(bounded) + len(wanted)])
    if np.any(upper[~rows.any(axis=1)] < 0):
        return None  # too much whatever is chosen, maybe by less than the solver would see
    goal = np.array([factor for _, factor in wanted]) @ goals
    if steps:
        # One more column, the peak in units of the largest entry: no step exceeds it.
        unit = max(float(step_rows.max()), 1.0)
        padded = np.pad(rows, ((0, 0), (0, 1)))
        rows = np.concatenate([padded, np.pad(step_rows, ((0, 0), (0, 1)), constant_values=-unit)])
        upper = np.concatenate([upper, -program.constants[-len(steps) :]])
        goal = np.append(goal, weights[PEAK] * unit)
    return _run(program, rows, upper, goal, effort)


def _run(program: Program, rows: Floats, upper: Floats, goal: Floats, effort: _Effort) -> Levels | None:
    """What HiGHS finds. rows: (limits, columns), at most `upper`; goal: (columns,).

    Columns behind the program's are free.
    """
    binding = _may_exceed(program, rows, upper)
    rows, upper = rows[binding], upper[binding]
    units = SCALE / _largest(rows)
    least, most = program.bounds.T
    width = program.rows.shape[1]
    column = np.arange(len(goal))
    rules = hstack([program.rules, csr_array((len(program.bounds), len(goal) - width))])
    with silent_stdout():  # HiGHS 1.12 prints a line of its own whenever it repairs a solution
        result = milp(
            goal * (SCALE / _largest(goal[None])),
            integrality=(column < len(program.choices)).astype(int),
            bounds=Bounds(np.where(column < width, 0.0, -np.inf), np.where(column < width, 1.0, np.inf)),
            constraints=LinearConstraint(
                vstack([rules, csr_array(rows * units[:, None])]).tocsc(),
                np.append(least, np.full(len(rows), -np.inf)),
                np.append(most, upper * units),
            ),
            options={
                "mip_rel_gap": effort.mip_rel_gap,
                "time_limit": np.inf if effort.time_limit_s is None else effort.time_limit_s,
            },
        )
    if result.status in (0, 1) and result.x is not None:
        return program.levels(result.x)
    if result.status == 2:
        return None
    if result.status == 1:
        raise OutOfTime(f"nothing was found in {effort.time_limit_s} s")
    raise RuntimeError(f"the solver of integer programs failed: {result.message}")


def _may_exceed(program: Program, rows: Floats, upper: Floats) -> NDArray[np.bool_]:
    """The limits that some choice exceeds: the others would only cost time. Rows with a column of their own may."""
    own, width = len(program.choices), program.rows.shape[1]
    starts = np.flatnonzero(np.diff(program.choices[:, 0], prepend=-1))
    most = np.maximum(rows[:, own:width], 0.0).sum(axis=1)
    if own:
        most += np.maximum.reduceat(rows[:, :own], starts, axis=1).sum(axis=1)
    return np.asarray(((most > upper) & rows.any(axis=1)) | rows[:, width:].any(axis=1))


def _largest(rows: Floats) -> Floats:
    """(rows,) the largest entry of each, 1 where there is none."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    return np.where(largest > 0.0, largest, 1.0)
