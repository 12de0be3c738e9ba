"""The regret matrix: what each target's best assignment costs on every other target, and what that gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from haq.constraints import Constraints, shown
from haq.errors import InfeasibleError, InputError, lookup
from haq.front import MINIMIZE, pick
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import HardwareProfile
from haq.hardware.table import CostTable
from haq.history import History
from haq.precision import BIT_WIDTHS, Assignment
from haq.scaling import PLAIN, Scaling
from haq.space import SearchSpace
from haq.workload import Workload


@dataclass(frozen=True)
class Choice:
    """One target's best assignment, as asked. candidate: its number in the run; absent when chosen by cost alone."""

    target: str
    requested: Assignment
    candidate: int | None = None


@dataclass(frozen=True)
class Priced:
    """What a target executes of an assignment, and its figures; executed is absent where only the cost was wanted."""

    costs: Mapping[str, float]
    executed: Assignment | None = None


@dataclass(frozen=True)
class Cell:
    """The choice of `best_of` on the target `on`.

    value: the minimized figure, in its unit. regret: relative to the best of `on` itself; 0.1 is a tenth worse,
    negative is cheaper. drop_points: measured for what `on` executes; absent where it was not, or not in full.
    """

    best_of: str
    on: str
    value: float
    regret: float
    drop_points: float | None = None

    def to_json(self) -> dict[str, Any]:
        raw = {"best_of": self.best_of, "on": self.on, "value": self.value, "regret_percent": 100 * self.regret}
        measured = {} if self.drop_points is None else {"drop_points": self.drop_points}
        return {**raw, "measured": self.drop_points is not None, **measured}


@dataclass(frozen=True)
class RegretMatrix:
    """One row of cells per choice, one column per target. figure: what was minimized, such as `latency_ms`."""

    figure: str
    choices: tuple[Choice, ...]
    cells: tuple[tuple[Cell, ...], ...]

    def to_json(self) -> dict[str, Any]:
        best = {
            c.target: {**({} if c.candidate is None else {"candidate": c.candidate}), "bits": c.requested.to_json()}
            for c in self.choices
        }
        return {
            "figure": self.figure,
            "best": best,
            "cells": [cell.to_json() for row in self.cells for cell in row],
        }


Price = Callable[[Choice, str], Priced]
"""(choice, target) -> what the target makes of it."""


def choices_of_run(history: History, targets: Sequence[str], limits: Constraints, minimize: str) -> tuple[Choice, ...]:
    """Every target's best front point, chosen as `pick` does; raises what `pick` raises."""
    points = {target: pick(history.candidates, target, limits, minimize) for target in targets}
    return tuple(Choice(t, p.candidate.requested, p.candidate.number) for t, p in points.items())


def regret_matrix(
    choices: Sequence[Choice], minimize: str, price: Price, history: History | None = None
) -> RegretMatrix:
    """The matrix of several targets' choices; raises InputError where a target's figure is unknown.

    history: tells which executed formats were measured. A regret is relative to the target's own choice.
    """
    figure = lookup(MINIMIZE, minimize, "figure to minimize")
    measured = history.measured if history is not None else {}

    def cell(choice: Choice, on: str) -> Cell:
        priced = price(choice, on)
        if figure not in priced.costs:
            raise InputError(
                f"{figure} is unknown on target {on!r}", got=minimize, expected="a figure that every profile can give"
            )
        found = None if priced.executed is None else measured.get(priced.executed.signature)
        drop = None if found is None or found.is_partial else found.drop_points
        return Cell(choice.target, on, priced.costs[figure], 0.0, drop)

    targets = [choice.target for choice in choices]
    rows = [[cell(choice, on) for on in targets] for choice in choices]
    own = [rows[i][i].value for i in range(len(targets))]
    cells = tuple(
        tuple(replace(cell, regret=cell.value / best - 1) for cell, best in zip(row, own, strict=True)) for row in rows
    )
    return RegretMatrix(figure, tuple(choices), cells)


def as_recorded(history: History) -> Price:
    """The prices that the run itself judged by: every candidate was priced on every target."""
    by_number = {candidate.number: candidate for candidate in history.candidates}

    def price(choice: Choice, on: str) -> Priced:
        assert choice.candidate is not None, "only candidates of the run were recorded"
        result = by_number[choice.candidate].on(on)
        return Priced(result.costs, result.executed)

    return price


def priced_now(
    workload: Workload,
    profiles: Mapping[str, HardwareProfile],
    batches: Mapping[str, int],
    scaling: Scaling = PLAIN,
) -> Price:
    """Prices by the profiles given. batches: target -> samples per inference; scaling: what bit-widths ask for."""

    def price(choice: Choice, on: str) -> Priced:
        executed = legalize(workload, choice.requested, profiles[on], scaling).executed
        return Priced(estimate(workload, executed, profiles[on], batch=batches[on]).figures(), executed)

    return price


Ranks = Callable[[Sequence[tuple[int, ...]]], list[tuple[float, float, int]]]
"""Points -> less is better: bytes above the limit, the figure, and bits, of which more are better."""


def cheapest(
    tables: Sequence[CostTable], space: SearchSpace, minimize: str, max_size_bytes: float | None = None
) -> tuple[Choice, ...]:
    """The assignment of each target that is best by the cost model alone, as far as changes of one group lead.

    Descends from every uniform bit-width, then from another target's best where that is better; of equal figures the
    one with more bits wins. tables: over BIT_WIDTHS. Raises InfeasibleError when nothing within the size was found,
    InputError where the figure is unknown.
    """
    figure = lookup(MINIMIZE, minimize, "figure to minimize")
    rankings = [_ranking(table, space, figure, max_size_bytes) for table in tables]
    ends = [min(_descend(space, space.uniform(width), ranks) for width in BIT_WIDTHS) for ranks in rankings]
    choices = []
    for table, ranks, end in zip(tables, rankings, ends, strict=True):
        better = [point for _, point in ends if ranks([point])[0] < end[0]]
        best, point = min([end, *(_descend(space, start, ranks) for start in better)])
        if max_size_bytes is not None and best[0] > 0:
            smallest = shown("size_bytes", max_size_bytes + best[0])
            limit = shown("size_bytes", max_size_bytes)
            raise InfeasibleError(f"no assignment within {limit} on {table.target}: the smallest is {smallest}")
        choices.append(Choice(table.target, space.assignment(point)))
    return tuple(choices)


def _ranking(table: CostTable, space: SearchSpace, figure: str, max_size_bytes: float | None) -> Ranks:
    bits = np.array(BIT_WIDTHS)

    def ranks(points: Sequence[tuple[int, ...]]) -> list[tuple[float, float, int]]:
        levels = space.layer_levels(points)
        found = table.price(levels)
        values = found.by_name()[figure]
        if np.isnan(values).any():
            raise InputError(
                f"{figure} is unknown on target {table.target!r}", expected="a figure that its profile can give"
            )
        above = np.maximum(found.size_bytes - (np.inf if max_size_bytes is None else max_size_bytes), 0.0)
        return [(float(a), float(v), -int(b)) for a, v, b in zip(above, values, bits[levels].sum(axis=1), strict=True)]

    return ranks


def _descend(
    space: SearchSpace, start: tuple[int, ...], ranks: Ranks
) -> tuple[tuple[float, float, int], tuple[int, ...]]:
    """The rank of the point that no change of one group betters, and the point."""
    point, best = start, ranks([start])[0]
    improved = True
    while improved:
        improved = False
        for index, group in enumerate(space.groups):
            if group.is_free:
                trials = [(*point[:index], level, *point[index + 1 :]) for level in range(len(group.bits))]
                rank, trial = min(zip(ranks(trials), trials, strict=True))
                if rank < best:
                    point, best, improved = trial, rank, True
    return best, point
