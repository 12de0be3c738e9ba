"""Says exactly what limits on cost can be met, on targets whose costs are known as terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from haq.allocate import AllocationModel, allocate
from haq.constraints import LIMIT_OF
from haq.engine.problem import Target
from haq.space import SearchSpace

Levels = tuple[int, ...]

ROUNDING = 1e-9
"""Relative: a target's own costs may exceed a limit by less, when their terms are added up in another order."""


@dataclass(frozen=True)
class Reach:
    """What a target's costs can be within a space.

    model: the target's terms; its loss falls with every bit, so that as few groups as possible are narrow. own: a limit
    -> its figure of a point by the target's own costs, which have the last word. base_latency_ms: what a rise is above.
    """

    model: AllocationModel
    own: Callable[[str, Levels], float]
    base_latency_ms: float

    def within(self, limits: Mapping[str, float]) -> Levels | None:
        """Levels that meet the limits, None where none do."""
        for room in (0.0, ROUNDING):
            bounds = {name: bound - room * abs(bound) for name, bound in self._bounds(limits).items()}
            levels = allocate(self.model, bounds)
            if levels is None or all(self.own(limit, levels) <= bound for limit, bound in limits.items()):
                return levels
        return None

    def smallest(self, limit: str, kept: Mapping[str, float] | None = None) -> Levels:
        """The levels with the smallest figure of a limit, within other limits that some levels meet."""
        levels = allocate(self.model, self._bounds(kept or {}), minimize=_figure(limit))
        assert levels is not None, f"limits {kept} were reached before"
        return levels

    def relaxations(self, limits: Mapping[str, float]) -> tuple[Mapping[str, float], ...]:
        """Which limits to raise, and to what at least, so that all can be met: the ways that raise fewest.

        Whatever limit comes last is raised to the smallest value that the others allow, and each of the others, in
        turn, to what those before it allow.
        """
        ways = []
        for last in limits:
            kept: dict[str, float] = {}
            for limit in (*(other for other in limits if other != last), last):
                kept[limit] = max(limits[limit], self.own(limit, self.smallest(limit, kept)))
            raised = {limit: kept[limit] for limit in limits if kept[limit] > limits[limit]}
            if raised not in ways:
                ways.append(raised)
        fewest = min(map(len, ways))
        return tuple(way for way in ways if len(way) == fewest)

    def _bounds(self, limits: Mapping[str, float]) -> dict[str, float]:
        """Figure -> its bound; a rise is a latency above the baseline's."""
        bounds: dict[str, float] = {}
        for limit, bound in limits.items():
            shift = self.base_latency_ms if limit == "max_latency_rise_ms" else 0.0
            bounds[_figure(limit)] = min(bound + shift, bounds.get(_figure(limit), np.inf))
        return bounds


def reach_of(
    target: Target, space: SearchSpace, own: Callable[[str, Levels], float], base_latency_ms: float
) -> Reach | None:
    """The reach of a target in a space; None where its costs are not known as terms."""
    if target.terms is None:
        return None
    terms = target.terms(space)
    loss = np.full((len(space.groups), max((len(group.bits) for group in space.groups), default=0)), np.inf)
    for row, group in zip(loss, space.groups, strict=True):
        # A quantization step halves with every bit.
        row[: len(group.bits)] = 0.5 ** np.array(group.bits)
    return Reach(AllocationModel(loss, terms.figures, terms.peak), own, base_latency_ms)


def _figure(limit: str) -> str:
    return "latency_ms" if limit == "max_latency_rise_ms" else LIMIT_OF[limit]
