"""Fronts from a history: per target, jointly over targets, and the one point that a user picks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from haq.candidate import Candidate, TargetResult
from haq.constraints import Constraints
from haq.errors import InfeasibleError, InputError, lookup
from haq.pareto import non_dominated


@dataclass(frozen=True)
class Point:
    """One candidate on one target: what a front consists of."""

    candidate: Candidate
    result: TargetResult

    @property
    def losses(self) -> tuple[float, float, float]:
        """(size_bytes, latency_ms, drop_points): the three objectives, minimized."""
        assert self.result.measurement is not None, "only measured candidates have losses"
        return (self.result.costs["size_bytes"], self.result.costs["latency_ms"], self.result.measurement.drop_points)


MINIMIZE: dict[str, str] = {"size": "size_bytes", "latency": "latency_ms", "energy": "energy_mj"}
"""What `pick` can minimize, and the figure that it means."""


def measured_points(candidates: Sequence[Candidate], target: str) -> tuple[Point, ...]:
    """Every candidate with a measured accuracy on the target, in order, feasible or not, stopped early or not."""
    _check_target(candidates, target)
    points = (Point(candidate, candidate.on(target)) for candidate in candidates)
    return tuple(point for point in points if point.result.measurement is not None)


def front(candidates: Sequence[Candidate], target: str) -> tuple[Point, ...]:
    """The target's feasible, measured candidates that no other beats in size, latency and drop, smallest first.

    Of candidates that execute alike the first asked one stands for all. One that was stopped early is not on it.
    """
    points = [p for p in measured_points(candidates, target) if p.result.is_feasible and p.result.is_measured_in_full]
    if not points:
        return ()
    keep = non_dominated([point.losses for point in points])
    return tuple(sorted((p for p, kept in zip(points, keep, strict=True) if kept), key=lambda p: p.losses))


class GrowingFront:
    """One target's front while candidates come in, in a time that does not depend on their number.

    points: at any time what `front` finds among those added. It changes with every one.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.points: tuple[Point, ...] = ()

    def add(self, candidate: Candidate) -> None:
        """Take the next candidate."""
        point = Point(candidate, candidate.on(self._target))
        if not (point.result.is_feasible and point.result.is_measured_in_full):
            return
        if any(_is_no_worse(known, point) for known in self.points):
            return
        left = [known for known in self.points if not _is_no_worse(point, known)]
        self.points = tuple(sorted([*left, point], key=lambda p: p.losses))


def _is_no_worse(one: Point, other: Point) -> bool:
    return all(a <= b for a, b in zip(one.losses, other.losses, strict=True))


def joint_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates, feasible on every target, that no other beats on all targets at once.

    Size, latency and drop of every target stand side by side as objectives; targets are never averaged. A candidate
    that was stopped early on a target, where it is beaten, is not on it, even if it would be a compromise.
    """
    feasible = [c for c in candidates if all(r.is_feasible and r.is_measured_in_full for r in c.results)]
    if not feasible:
        return ()
    losses = [[value for r in c.results for value in Point(c, r).losses] for c in feasible]
    return tuple(c for c, kept in zip(feasible, non_dominated(losses), strict=True) if kept)


def pick(candidates: Sequence[Candidate], target: str, limits: Constraints, minimize: str = "size") -> Point:
    """The point of the target's front that minimizes `size`, `latency` or `energy` within further limits.

    A limit on the latency rise is not judged here: the run's own limits already hold on the front.
    Raises InfeasibleError that names, for each limit, the front's nearest value.
    """
    figure = lookup(MINIMIZE, minimize, "figure to minimize")
    points = front(candidates, target)
    if not points:
        raise InfeasibleError(f"no candidate meets the limits of the search on {target}, so its front is empty")
    within = [point for point in points if limits.judge(_figures(point)).is_feasible]
    if not within:
        raise InfeasibleError(f"no point of the front of {target} meets the limits; {_nearest(points, limits)}")
    if any(figure not in point.result.costs for point in within):
        raise InputError(
            f"{figure} is unknown on target {target!r}", got=minimize, expected="a figure that its profile can give"
        )
    key: Callable[[Point], tuple[float, ...]] = lambda point: (point.result.costs[figure], point.losses[2])  # noqa: E731
    return min(within, key=key)


def _figures(point: Point) -> dict[str, float]:
    assert point.result.measurement is not None, "only measured candidates are on a front"
    return {**point.result.costs, **point.result.measurement.figures()}


def _nearest(points: Sequence[Point], limits: Constraints) -> str:
    """The closest point by its worst relative excess, and what it violates."""

    def worst(point: Point) -> float:
        verdict = limits.judge(_figures(point))
        return max((v.excess / max(abs(v.bound), 1e-9) for v in verdict.violations), default=np.inf)

    unknown = limits.judge(_figures(points[0])).unknown
    if unknown:
        return f"{', '.join(unknown)} is unknown on this target, so its limit cannot be judged"
    closest = sorted(points, key=worst)[:2]
    texts = [f"{p.result.config_id}: " + ", ".join(map(str, limits.judge(_figures(p)).violations)) for p in closest]
    return f"nearest: {'; '.join(texts)}"


def _check_target(candidates: Sequence[Candidate], target: str) -> None:
    known = [result.target for result in candidates[0].results] if candidates else [target]
    lookup(dict.fromkeys(known, True), target, "target of this run")
