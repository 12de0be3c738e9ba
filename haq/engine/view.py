"""One target as the guide sees it: what candidates cost there, which it admits, and what measurements say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from haq.allocate import AllocationModel
from haq.engine.feasibility import population_of
from haq.engine.problem import Population, Problem, Target, cost_limits, executed_by, reference_point
from haq.expected import expected_gain
from haq.pareto import non_dominated
from haq.sensitivity import Sensitivity
from haq.space import SearchSpace
from haq.surrogate import Observations, Surrogate, finite
from haq.sweep import sweep

Floats = NDArray[np.float64]
Points = NDArray[np.intp]
"""(n, groups) levels."""

LARGE = 200
"""Groups from which on a front is solved coarsely: a solution takes a second there."""


@dataclass(frozen=True)
class View:
    """A target with its prices, limits and sensitivities.

    table: (groups, levels) sensitivities, finite. known: (groups, levels) whether they are known and outputs stay
    finite. reference: of the hypervolume. limits: figure -> bound, of the costs. model: absent without terms.
    """

    target: Target
    space: SearchSpace
    price: Population
    table: Floats
    known: NDArray[np.bool_]
    reference: tuple[float, float, float]
    limits: Mapping[str, float]
    model: AllocationModel | None

    @classmethod
    def of(cls, problem: Problem, target: Target, base: Mapping[str, float], sensitivity: Sensitivity) -> View:
        """The target as the problem has it; base: FP32's figures there."""
        space = problem.space
        losses = sensitivity.losses(space, executed_by(target))
        terms = None if target.terms is None else target.terms(space)
        return cls(
            target, space, population_of(space, target), finite(losses), np.isfinite(losses),
            reference_point(target, base), cost_limits(target, base),
            None if terms is None else AllocationModel(losses, terms.figures, terms.peak),
        )  # fmt: skip

    def costs(self, points: Points) -> Floats:
        """(n, 2) size_bytes and latency_ms."""
        if not len(points):
            return np.empty((0, 2))  # a population that asks one by one knows no figures then
        priced = self.price(self.space.layer_levels(points))
        return np.column_stack([priced["size_bytes"], priced["latency_ms"]]).astype(np.float64)

    def admits(self, points: Points) -> NDArray[np.bool_]:
        """(n,) whether the limits on cost are kept and every level's loss is known and finite."""
        admitted = np.asarray(self.known[np.arange(len(self.known)), points].all(axis=1))
        if self.limits and len(points):
            priced = self.price(self.space.layer_levels(points))
            for figure, bound in self.limits.items():
                admitted &= priced[figure] <= bound
        return admitted

    def predicted(self, model: Surrogate, points: Points) -> Floats:
        """(n, 3) size_bytes, latency_ms and predicted drop."""
        return np.column_stack([self.costs(points), model.mean(points)])

    def believed(self, model: Surrogate, seen: Observations) -> Floats:
        """(n, 3) the same of what was measured: a drop is what measurement and prediction together say.

        A measured drop alone would make luck on few samples look like a point that nothing can beat.
        """
        mean, deviation = model.predict(seen.levels)
        noise = np.nan_to_num(seen.errors) ** 2
        trust = np.divide(deviation**2, deviation**2 + noise, out=np.ones(len(mean)), where=noise > 0)
        return np.column_stack([self.costs(seen.levels), trust * seen.drops + (1 - trust) * mean])

    def gains(self, points: Points, drops: tuple[Floats, Floats], front: Floats) -> Floats:
        """(n,) expected growth of the hypervolume as a share of the reference box; 0 for what is not admitted.

        drops: mean and standard deviation of each point's. front: (k, 3) of what is there.
        """
        gain = expected_gain(self.costs(points), *drops, front, self.reference)
        return gain * self.admits(points) / np.prod(self.reference)

    def solved(self, table: Floats) -> Points:
        """The front that a table of losses predicts, exactly on small spaces; empty where costs are not terms."""
        if self.model is None:
            return np.empty((0, len(table)), dtype=np.intp)
        model = replace(self.model, loss=np.where(self.known, table, np.nan))
        # No time limits: what is found must not depend on the machine's mood.
        points, gap = (16, 0.01) if self.is_large else (32, 0.0)
        found = sweep(model, self.limits, points=points, mip_rel_gap=gap)
        return np.array(found, dtype=np.intp).reshape(-1, len(table))

    @property
    def is_large(self) -> bool:
        """Whether solving takes long."""
        return len(self.table) > LARGE

    def best(self, model: Surrogate, points: Points) -> Points:
        """Those admitted that no other is predicted to beat; all, where none is admitted."""
        admitted = points[self.admits(points)]
        return admitted[non_dominated(self.predicted(model, admitted))] if len(admitted) else points
