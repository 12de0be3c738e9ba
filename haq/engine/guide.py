"""Proposes candidates: the front that sensitivities predict, then whatever promises most hypervolume on all targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from haq.allocate import AllocationModel
from haq.engine.feasibility import population_of
from haq.engine.problem import Population, Problem, Target, cost_limits, executed_by, reference_point
from haq.engine.samplers import trial_seed
from haq.expected import expected_gain
from haq.pareto import non_dominated
from haq.sensitivity import Sensitivity
from haq.surrogate import Observations, Surrogate, fit
from haq.sweep import sweep

Floats = NDArray[np.float64]
Points = NDArray[np.intp]
"""(n, groups) levels."""

PLANNED = 16
"""Members of the predicted front that are measured before anything else."""

ROUNDS, CHILDREN = 3, 256
"""Generations of random changes for one proposal, and how many are made in each."""

FIRST_REFIT = 16
"""Measurements after which the predicted front is solved anew; then after every doubling."""

LARGE = 200
"""Groups from which on the predicted front is solved once, coarsely: a solution takes a second there."""

LOOKED_AT = 32
"""Of the most promising candidates, how many are compared by gain per measurement."""

LEAST_GAIN = 1e-6
"""Fraction of the reference volume below which a gain is none."""


@dataclass(frozen=True)
class View:
    """One target as the guide sees it.

    table: (groups, levels) sensitivities, finite. allowed: whether the level exists and its loss is known or finite.
    reference: of the hypervolume. limits: figure -> bound, of the costs.
    """

    target: Target
    price: Population
    table: Floats
    allowed: NDArray[np.bool_]
    reference: tuple[float, float, float]
    limits: Mapping[str, float]
    model: AllocationModel | None


class Guide:
    """What sensitivities and measurements say about unmeasured candidates. It keeps the fronts that it has solved.

    Proposals depend on the history and the candidate's number alone, so a resumed run repeats an unbroken one.
    """

    def __init__(
        self, problem: Problem, base: Mapping[str, Mapping[str, float]], sensitivity: Sensitivity, seed: int
    ) -> None:
        self._problem, self._seed, self.measure = problem, seed, sensitivity.measure
        self.views = tuple(_view(problem, target, base[target.name], sensitivity) for target in problem.targets)
        self._widths = np.array([len(group.bits) for group in problem.space.groups])
        self._solved: dict[tuple[str, int], Points] = {}

    def plan(self, start: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        """PLANNED members of the targets' predicted fronts, those that add most first. start: levels asked anyway."""
        nothing = {view.target.name: _nothing(len(self._widths)) for view in self.views}
        models = {view.target.name: fit(view.table, nothing[view.target.name]) for view in self.views}
        pool = np.unique(np.concatenate([self._front(view, nothing[view.target.name]) for view in self.views]), axis=0)
        fronts = {view.target.name: self._predicted(view, models, np.array(start)) for view in self.views}
        points = {view.target.name: self._predicted(view, models, pool) for view in self.views}
        planned: list[tuple[int, ...]] = []
        while len(planned) < PLANNED:
            gains = np.zeros(len(pool))
            for view in self.views:
                p, exact = points[view.target.name], np.zeros(len(pool))
                gain = expected_gain(p[:, :2], p[:, 2], exact, fronts[view.target.name], view.reference)
                gains += gain * self._within(view, pool) / np.prod(view.reference)
            best = int(gains.argmax())
            if gains[best] <= LEAST_GAIN:
                break
            planned.append(tuple(pool[best].tolist()))
            for view in self.views:
                name = view.target.name
                fronts[name] = np.concatenate([fronts[name], points[name][best : best + 1]])
        return tuple(planned)

    def propose(
        self,
        number: int,
        seen: Mapping[str, Observations],
        feasible: Mapping[str, NDArray[np.bool_]],
        measurements: Callable[[tuple[int, ...]], int],
    ) -> tuple[int, ...] | None:
        """The levels with most expected gain per measurement; None when nothing promises any.

        seen: target -> what is measured there; feasible: which of that keeps all limits and was measured in full.
        measurements: how many a candidate needs, 0 for one that executes like an earlier one.
        """
        asker = self.views[number % len(self.views)]
        models = {view.target.name: fit(view.table, seen[view.target.name]) for view in self.views}
        pool = self._pool(asker, models[asker.target.name], seen[asker.target.name], number)
        gains = np.zeros(len(pool))
        for view in self.views:
            name = view.target.name
            mean, deviation = models[name].predict(pool)
            front = self._believed(view, models[name], seen[name], feasible[name])
            gain = expected_gain(self._costs(view, pool), mean, deviation, front, view.reference)
            gains += gain * self._within(view, pool) / np.prod(view.reference)
        best, chosen = LEAST_GAIN, None
        for place in np.argsort(-gains, kind="stable")[:LOOKED_AT]:
            levels = tuple(pool[place].tolist())
            needed = measurements(levels)
            if needed and gains[place] / needed > best:
                best, chosen = gains[place] / needed, levels
        return chosen

    def surrogate(self, target: str, seen: Observations) -> Surrogate:
        """What predicts drops on the target now."""
        return fit(next(view.table for view in self.views if view.target.name == target), seen)

    def _pool(self, view: View, model: Surrogate, seen: Observations, number: int) -> Points:
        """Candidates that are predicted to be good: the solved front and measured ones, changed at random."""
        rng = np.random.default_rng(trial_seed(self._seed, number))
        archive = np.unique(np.concatenate([self._front(view, seen), seen.levels[-2 * CHILDREN :]]), axis=0)
        archive = self._best(view, model, archive)
        for _ in range(ROUNDS):
            archive = self._best(view, model, np.concatenate([archive, self._children(view, archive, rng)]))
        return archive

    def _front(self, view: View, seen: Observations) -> Points:
        """The predicted front, solved with the table as it was after a round number of measurements."""
        count = len(seen.levels)
        is_first = count < FIRST_REFIT or len(view.table) > LARGE
        round_number = 0 if is_first else FIRST_REFIT * 2 ** int(np.log2(count // FIRST_REFIT))
        key = view.target.name, round_number
        if key not in self._solved:
            first = seen.taken(slice(round_number))
            self._solved[key] = self._solve(view, fit(view.table, first).corrected)
        return self._solved[key]

    def _solve(self, view: View, table: Floats) -> Points:
        uniform = [self._problem.space.uniform(bits) for bits in (4, 8, 16, 32)]
        if view.model is None:
            return np.unique(np.array(uniform), axis=0)
        model = replace(view.model, loss=np.where(view.allowed, table, np.nan))
        # No time limits: what is found must not depend on the machine's mood.
        solved = (
            sweep(model, view.limits) if len(table) <= LARGE else sweep(model, view.limits, points=16, mip_rel_gap=0.01)
        )
        return np.unique(np.array([*solved, *uniform]), axis=0)

    def _children(self, view: View, parents: Points, rng: np.random.Generator) -> Points:
        """Mixtures of two parents half of the time, then one to three groups moved by a level or to any."""
        count, groups = CHILDREN, len(self._widths)
        first, second = parents[rng.integers(len(parents), size=(2, count))]
        mixed = (rng.random((count, groups)) < 0.5) & (rng.random((count, 1)) < 0.5)
        children = np.where(mixed, second, first)
        for _ in range(3):
            rows = np.flatnonzero(rng.random(count) < 0.6)
            columns = rng.integers(groups, size=len(rows))
            step = np.where(
                rng.random(len(rows)) < 0.75, rng.choice((-1, 1), size=len(rows)), rng.integers(-3, 4, len(rows))
            )
            children[rows, columns] = np.clip(children[rows, columns] + step, 0, self._widths[columns] - 1)
        known = view.allowed[np.arange(groups), children].all(axis=1)
        return np.unique(children[known], axis=0)

    def _best(self, view: View, model: Surrogate, points: Points) -> Points:
        """Those within the limits that no other is predicted to beat; all, where none is within."""
        within = points[self._within(view, points)]
        if not len(within):
            return points
        return within[non_dominated(np.column_stack([self._costs(view, within), model.predict(within)[0]]))]

    def _believed(self, view: View, model: Surrogate, seen: Observations, feasible: NDArray[np.bool_]) -> Floats:
        """(k, 3) objectives of feasible candidates; a drop is what measurement and prediction together say.

        A measured drop alone would make luck on few samples look like a point that nothing can beat.
        """
        levels = seen.levels[feasible]
        mean, deviation = model.predict(levels)
        noise = np.nan_to_num(seen.errors[feasible]) ** 2
        trust = np.divide(deviation**2, deviation**2 + noise, out=np.ones(len(levels)), where=noise > 0)
        return np.column_stack([self._costs(view, levels), trust * seen.drops[feasible] + (1 - trust) * mean])

    def _predicted(self, view: View, models: Mapping[str, Surrogate], points: Points) -> Floats:
        """(n, 3) size_bytes, latency_ms and predicted drop."""
        return np.column_stack([self._costs(view, points), models[view.target.name].predict(points)[0]])

    def _costs(self, view: View, points: Points) -> Floats:
        priced = view.price(self._problem.space.layer_levels(points))
        return np.column_stack([priced["size_bytes"], priced["latency_ms"]]).astype(np.float64)

    def _within(self, view: View, points: Points) -> NDArray[np.bool_]:
        if not view.limits:
            return np.ones(len(points), dtype=bool)
        priced = view.price(self._problem.space.layer_levels(points))
        within: NDArray[np.bool_] = np.all([priced[figure] <= bound for figure, bound in view.limits.items()], axis=0)
        return within


def _view(problem: Problem, target: Target, base: Mapping[str, float], sensitivity: Sensitivity) -> View:
    losses = sensitivity.losses(problem.space, executed_by(target))
    allowed = np.isfinite(losses)
    # What is unknown or not finite is never planned; other samplers may still ask for it, then it counts as the worst.
    table = np.where(allowed, losses, 10 * losses[allowed].max(initial=0.0))
    exists = np.arange(losses.shape[1]) < np.array([[len(group.bits)] for group in problem.space.groups])
    table = np.where(exists, table, 0.0)
    limits = cost_limits(target, base)
    model = None
    if target.terms is not None:
        terms = target.terms(problem.space)
        model = AllocationModel(np.where(allowed, losses, np.nan), terms.figures, terms.peak)
    return View(target, population_of(problem, target), table, allowed, reference_point(target, base), limits, model)


def _nothing(groups: int) -> Observations:
    empty = np.empty(0)
    return Observations(np.empty((0, groups), dtype=np.intp), empty, empty, empty)
