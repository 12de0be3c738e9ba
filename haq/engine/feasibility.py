"""Tells before the first measurement whether limits on cost can be met, how often, and if not, what is in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from haq.constraints import LIMIT_OF, ON_MEASUREMENTS, called, relaxed, shown
from haq.engine.problem import Population, Problem, Target
from haq.engine.reach import Levels, Reach, reach_of
from haq.errors import InfeasibleError, InputError
from haq.precision import BIT_WIDTHS, Assignment
from haq.space import Group, SearchSpace

Floats = NDArray[np.float64]
Losses = Callable[[NDArray[np.intp]], Floats]
"""(points, groups) levels -> one loss per point."""


DRAWN = 1000
"""Assignments that are priced to tell which share of a space keeps the limits, to within 3 points (95 %)."""


def drawn_points(space: SearchSpace, seed: int) -> NDArray[np.intp]:
    """(points, groups) levels: the whole space when it holds at most DRAWN points, else so many drawn at random."""
    widths = [len(group.bits) for group in space.groups]
    if space.size <= DRAWN:
        return np.stack(np.unravel_index(np.arange(space.size), widths), axis=1)
    return np.random.default_rng(seed).integers(0, widths, size=(DRAWN, len(widths)))


def kept_shares(
    problem: Problem, base: Mapping[str, Mapping[str, float]], points: NDArray[np.intp]
) -> dict[str, float]:
    """Target -> the share of the points that keeps its limits on cost, for targets that have any and a population."""
    return {
        target.name: float((_excess(problem.space, target, base[target.name], target.population)(points) == 0).mean())
        for target in problem.targets
        if target.population is not None and _cost_limits(target)
    }


def reachable_levels(
    problem: Problem, base: Mapping[str, Mapping[str, float]], starts: tuple[Levels, ...]
) -> dict[str, Levels]:
    """Target -> levels that meet its limits on cost, for targets where none of `starts` does.

    Exact where the target's costs are known as terms, else by descent. Raises InfeasibleError when no assignment was
    found for a target, InputError when a limited figure is unknown there.
    """
    found = {}
    for target in problem.targets:
        of_several = target.name if len(problem.targets) > 1 else None
        levels = reachable_on(target, problem.space, base[target.name], starts, of_several)
        if levels is not None:
            found[target.name] = levels
    return found


def reachable_on(
    target: Target,
    space: SearchSpace,
    base: Mapping[str, float],
    starts: tuple[Levels, ...],
    of_several: str | None = None,
) -> Levels | None:
    """Levels that meet one target's limits on cost; None where one of `starts` does, or there are none.

    of_several: the target's name, where a way out has to say which one it is meant for. Raises as `reachable_levels`.
    """
    if not _cost_limits(target):
        return None
    # The target's own costs have the last word: a population may differ from them in the last digit.
    excess = _excess(space, target, base, _one_by_one(space, target))
    values = excess(np.array(starts))
    if values.min() == 0:
        return None
    reach = _reach(space, target, base)
    if reach is None:
        levels = descend(
            space, starts[int(values.argmin())], _excess(space, target, base, population_of(space, target))
        )
        if excess(np.array([levels]))[0] > 0:
            raise InfeasibleError(_message(target, _by_descent(space, target, base, (*starts, levels))))
        return levels
    reached = reach.within(_cost_limits(target))
    if reached is None:
        raise InfeasibleError(_message(target, _by_reach(space, target, base, reach, of_several)))
    return reached


def descend(space: SearchSpace, start: Levels, losses: Losses) -> Levels:
    """The levels at which no change of a single group lowers the loss: exact where groups add up, as sizes do.

    Group by group takes its best level. The changes of several groups are asked at once, twice as many each time that
    none of them is better.
    """
    group_of = np.repeat(np.arange(len(space.groups)), [len(group.bits) for group in space.groups])
    level_of = np.concatenate([np.arange(len(group.bits)) for group in space.groups])
    levels = np.array(start)
    best = losses(levels[None])[0]
    improved = True
    while improved and best > 0:
        improved, group, ahead = False, 0, 1
        while group < len(space.groups):
            asked = np.flatnonzero((group_of >= group) & (group_of < group + ahead))
            trials = np.tile(levels, (len(asked), 1))
            trials[np.arange(len(asked)), group_of[asked]] = level_of[asked]
            values = losses(trials)
            better = np.flatnonzero(values < best)
            if not len(better):
                group, ahead = group + ahead, 2 * ahead
                continue
            moved = group_of[asked[better[0]]]
            chosen = better[values[better[group_of[asked[better]] == moved]].argmin()]
            levels, best, improved = trials[chosen], values[chosen], True
            group, ahead = moved + 1, 1
    return tuple(levels.tolist())


def population_of(space: SearchSpace, target: Target) -> Population:
    """What prices many requests on the target, in whatever way it can."""
    return _one_by_one(space, target) if target.population is None else target.population


def _one_by_one(space: SearchSpace, target: Target) -> Population:
    """The target's own costs as a population."""

    def price(levels: NDArray[np.uint8]) -> dict[str, Floats]:
        costs = []
        for row in levels.tolist():
            bits = (BIT_WIDTHS[place] for place in row)
            request = Assignment.of(dict(zip(space.layers, bits, strict=True)))
            costs.append(target.costs(target.legalize(request)[0]))
        names = dict.fromkeys(name for row in costs for name in row)
        return {name: np.array([row.get(name, np.nan) for row in costs], dtype=np.float64) for name in names}

    return price


def _cost_limits(target: Target) -> dict[str, float]:
    return {limit: b for limit, b in target.constraints.set_limits().items() if limit not in ON_MEASUREMENTS}


def _costs(price: Population, levels: NDArray[np.uint8], base: Mapping[str, float]) -> dict[str, Floats]:
    """What limits are judged on, but for the drop; levels: (requests, layers) as a Population takes them."""
    costs = price(levels)
    return {**costs, "latency_rise_ms": costs["latency_ms"] - base["latency_ms"]}


def _excess(space: SearchSpace, target: Target, base: Mapping[str, float], price: Population) -> Losses:
    """The sum of relative excesses over the target's limits on cost; 0 when all hold."""
    limits = _cost_limits(target)
    # A latency rise may be negative or limited to 0, hence the scale by the baseline there.
    scale = {"max_latency_rise_ms": base["latency_ms"]}

    def losses(points: NDArray[np.intp]) -> Floats:
        costs = _costs(price, space.layer_levels(points), base)
        total = np.zeros(len(points))
        for limit, bound in limits.items():
            values = costs.get(LIMIT_OF[limit])
            if values is None or np.isnan(values).any():
                raise InputError(
                    f"{LIMIT_OF[limit]} is unknown on this target, so its limit cannot be judged",
                    where=f"target {target.name!r}",
                    got=f"{limit} {bound:g}",
                    expected="limits on what the profile can give",
                )
            total += np.maximum(0.0, values - bound) / max(scale.get(limit, bound), 1e-9)
        return total

    return losses


def _reach(space: SearchSpace, target: Target, base: Mapping[str, float]) -> Reach | None:
    price = _one_by_one(space, target)

    def own(limit: str, levels: Levels) -> float:
        return float(_costs(price, space.layer_levels([levels]), base)[LIMIT_OF[limit]][0])

    return reach_of(target, space, own, base["latency_ms"])


def _message(target: Target, parts: list[str]) -> str:
    return f"limits cannot be met on {target.name}: {'; '.join(parts)}"


def _by_reach(
    space: SearchSpace, target: Target, base: Mapping[str, float], reach: Reach, of_several: str | None
) -> list[str]:
    """Each limit with the smallest value that can be reached alone, what blocks more, and what to relax."""
    limits, parts = _cost_limits(target), []
    for limit, bound in limits.items():
        levels = reach.smallest(limit)
        parts.extend(_alone(space, target, base, levels, (limit, bound, reach.own(limit, levels)), "reachable"))
    if len(limits) > 1:
        parts.append("no assignment meets all of them at once")
    ways = [[relaxed(limit, least, of_several) for limit, least in way.items()] for way in reach.relaxations(limits)]
    # Where a limit is missed by less than the rounding of sums, no value of it is named.
    return [*parts, f"relax {', or '.join(map(' and '.join, ways))}"] if all(ways) else parts


def _by_descent(space: SearchSpace, target: Target, base: Mapping[str, float], starts: tuple[Levels, ...]) -> list[str]:
    """The same as far as descent leads, and without a way out."""
    price, parts = population_of(space, target), []
    for limit, bound in _cost_limits(target).items():
        figure = LIMIT_OF[limit]
        # A latency rise may be negative, where `descend` would stop: shifted by the baseline it is a latency.
        shift = base["latency_ms"] if limit == "max_latency_rise_ms" else 0.0

        def losses(points: NDArray[np.intp], figure: str = figure, shift: float = shift) -> Floats:
            return _costs(price, space.layer_levels(points), base)[figure] + shift

        smallest = descend(space, starts[int(losses(np.array(starts)).argmin())], losses)
        value = float(losses(np.array([smallest]), shift=0.0)[0])
        word = "reachable" if figure == "size_bytes" else "found"
        parts.extend(_alone(space, target, base, smallest, (limit, bound, value), word))
    if len(_cost_limits(target)) > 1:
        parts.append("no assignment was found that meets all of them at once")
    return parts


def _alone(
    space: SearchSpace, target: Target, base: Mapping[str, float], levels: Levels,
    met: tuple[str, float, float], word: str,
) -> list[str]:  # fmt: skip
    """The smallest value of one limit's figure, which `levels` have, and what blocks more.

    met: the limit, its bound and that value.
    """
    limit, bound, value = met
    figure = LIMIT_OF[limit]
    name = called(figure)
    line = f"{name} limit {shown(figure, bound)}: smallest {word} {name} is {shown(figure, value)}"
    return [line, *(_blockers(space, target, base, levels, figure) if value > bound else ())]


def _blockers(space: SearchSpace, target: Target, base: Mapping[str, float], levels: Levels, figure: str) -> list[str]:
    """What pins and rules cost in this figure, and where the target falls back to something wider."""
    freed = [(group, bits) for group in space.groups for bits in BIT_WIDTHS if bits not in group.bits]
    requests = np.repeat(space.layer_levels([levels]), 1 + len(freed), axis=0)
    column = {layer: i for i, layer in enumerate(space.layers)}
    for request, (group, bits) in zip(requests[1:], freed, strict=True):
        request[[column[layer] for layer in group.layers]] = BIT_WIDTHS.index(bits)
    values = _costs(population_of(space, target), requests, base)[figure]
    saved: dict[Group, tuple[float, int]] = {}
    for (group, bits), gain in zip(freed, (values[0] - values[1:]).tolist(), strict=True):
        if gain > saved.get(group, (0.0, 0))[0]:
            saved[group] = gain, bits
    gains = []
    for group, (gain, bits) in saved.items():
        allowed, won = "/".join(map(str, group.bits)), shown(figure, gain)
        gains.append((gain, f"{group.name} is limited to {allowed} bits ({bits} would save {won})"))
    parts = [text for _, text in sorted(gains, reverse=True)[:3]]
    narrowest = space.assignment(space.uniform(4))
    reasons = Counter(f"{f.requested} runs as {f.executed} ({f.reason})" for f in target.legalize(narrowest)[1])
    return parts + [f"on {count} layers {reason}" for reason, count in reasons.most_common(2)]
