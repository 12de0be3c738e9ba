"""Proposes candidates: the front that sensitivities predict, then whatever promises most hypervolume on all targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from haq.engine.problem import Problem
from haq.engine.samplers import trial_seed
from haq.engine.view import Points, View
from haq.precision import BIT_WIDTHS
from haq.sensitivity import Sensitivity
from haq.surrogate import Observations, Surrogate, fit

PLANNED = 16
"""Members of the predicted front that are measured before anything else."""

ROUNDS, CHILDREN = 3, 256
"""Generations of random changes for one proposal, and how many are made in each."""

FIRST_REFIT = 16
"""Measurements after which the predicted front is solved anew; then after every doubling."""

LOOKED_AT = 32
"""Of the most promising new candidates, how many are compared by gain per measurement."""

LEAST_GAIN = 1e-6
"""Fraction of the reference volume below which a gain is none."""


class Guide:
    """What sensitivities and measurements say about unmeasured candidates. It keeps the fronts that it has solved.

    Proposals depend on the history and the candidate's number alone, so a resumed run repeats an unbroken one.
    """

    def __init__(
        self, problem: Problem, base: Mapping[str, Mapping[str, float]], sensitivity: Sensitivity, seed: int
    ) -> None:
        self._seed, self.measure = seed, sensitivity.measure
        self._views = tuple(View.of(problem, target, base[target.name], sensitivity) for target in problem.targets)
        self._uniform = np.array([problem.space.uniform(bits) for bits in BIT_WIDTHS], dtype=np.intp)
        self._widths = np.array([len(group.bits) for group in problem.space.groups])
        self.is_large = any(view.is_large for view in self._views)
        self._solved: dict[tuple[str, int], Points] = {}

    def plan(self, start: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        """At most PLANNED members of the targets' predicted fronts, those that add most first.

        start: levels that are asked anyway. Nothing is planned on targets whose costs are not known as terms.
        """
        groups = len(self._widths)
        asked = np.array(start, dtype=np.intp).reshape(-1, groups)
        models = [fit(view.table, Observations.none(groups)) for view in self._views]
        pool = np.unique(np.concatenate([self._front(view, Observations.none(groups)) for view in self._views]), axis=0)
        points = [view.predicted(model, pool) for view, model in zip(self._views, models, strict=True)]
        fronts = [
            view.predicted(model, asked[view.admits(asked)]) for view, model in zip(self._views, models, strict=True)
        ]
        sure, planned = np.zeros(len(pool)), list[tuple[int, ...]]()
        while len(planned) < min(PLANNED, len(pool)):
            gains = np.zeros(len(pool))
            for view, found, front in zip(self._views, points, fronts, strict=True):
                gains += view.gains(pool, (found[:, 2], sure), front)
            best = int(gains.argmax())
            if gains[best] <= LEAST_GAIN:
                break
            planned.append(tuple(pool[best].tolist()))
            fronts = [np.concatenate([front, row[[best]]]) for front, row in zip(fronts, points, strict=True)]
        return tuple(planned)

    def propose(
        self,
        number: int,
        seen: Mapping[str, Observations],
        feasible: Mapping[str, NDArray[np.bool_]],
        measurements: Callable[[tuple[int, ...]], int],
    ) -> tuple[int, ...] | None:
        """The levels with most expected gain per measurement; None when nothing new promises any.

        seen: target -> what is measured there; feasible: which of that keeps all limits and was measured in full.
        measurements: how many a candidate needs, 0 for one that executes like an earlier one.
        """
        models = {view.target.name: fit(view.table, seen[view.target.name]) for view in self._views}
        asker = self._views[number % len(self._views)]
        pool = self._pool(asker, models[asker.target.name], seen[asker.target.name], number)
        gains = np.zeros(len(pool))
        for view in self._views:
            name = view.target.name
            front = view.believed(models[name], seen[name].taken(feasible[name]))
            gains += view.gains(pool, models[name].predict(pool), front)
        best, chosen, new = LEAST_GAIN, None, 0
        for place in np.argsort(-gains, kind="stable"):
            if new == LOOKED_AT or gains[place] <= best:
                break  # every candidate needs a measurement at least, so that no later one can be better
            levels = tuple(pool[place].tolist())
            if needed := measurements(levels):
                new += 1
                if gains[place] / needed > best:
                    best, chosen = gains[place] / needed, levels
        return chosen

    def _pool(self, view: View, model: Surrogate, seen: Observations, number: int) -> Points:
        """Candidates that are predicted to be good: the solved front and measured ones, changed at random."""
        rng = np.random.default_rng(trial_seed(self._seed, number))
        known = np.concatenate([self._front(view, seen), self._uniform, seen.levels[-2 * CHILDREN :]])
        archive = view.best(model, np.unique(known, axis=0))
        for _ in range(ROUNDS):
            children = np.concatenate([archive, self._children(archive, rng)])
            archive = view.best(model, np.unique(children, axis=0))
        return archive

    def _front(self, view: View, seen: Observations) -> Points:
        """The predicted front, solved with the table as it was after a round number of measurements."""
        count = len(seen.levels)
        is_first = count < FIRST_REFIT or view.is_large
        round_number = 0 if is_first else FIRST_REFIT * 2 ** ((count // FIRST_REFIT).bit_length() - 1)
        key = view.target.name, round_number
        if key not in self._solved:
            self._solved[key] = view.solved(fit(view.table, seen.taken(slice(round_number))).corrected)
        return self._solved[key]

    def _children(self, parents: Points, rng: np.random.Generator) -> Points:
        """Mixtures of two parents half of the time, then up to three groups moved by a level or to any."""
        groups = len(self._widths)
        first, second = parents[rng.integers(len(parents), size=(2, CHILDREN))]
        mixed = (rng.random((CHILDREN, groups)) < 0.5) & (rng.random((CHILDREN, 1)) < 0.5)
        children: Points = np.where(mixed, second, first)
        for _ in range(3):
            rows = np.flatnonzero(rng.random(CHILDREN) < 0.6)
            columns = rng.integers(groups, size=len(rows))
            near, far = rng.choice((-1, 1), size=len(rows)), rng.integers(-3, 4, len(rows))
            step = np.where(rng.random(len(rows)) < 0.75, near, far)
            children[rows, columns] = np.clip(children[rows, columns] + step, 0, self._widths[columns] - 1)
        return children
