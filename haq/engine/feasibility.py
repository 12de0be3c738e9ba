"""Tells before the first measurement whether limits on cost can be met at all, and if not, what is in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from haq.constraints import LIMIT_OF, called, shown
from haq.engine.problem import Problem, Target, figures
from haq.errors import InfeasibleError, InputError
from haq.precision import BIT_WIDTHS, Assignment
from haq.space import SearchSpace

Loss = Callable[[tuple[int, ...]], float]


def reachable_levels(
    problem: Problem, base: Mapping[str, Mapping[str, float]], starts: tuple[tuple[int, ...], ...]
) -> dict[str, tuple[int, ...]]:
    """Target -> levels that meet its limits on cost, for targets where none of `starts` does.

    Raises InfeasibleError when no assignment was found for a target, InputError when a limited figure is unknown there.
    """
    found = {}
    for target in problem.targets:
        excess = _excess(problem.space, target, base[target.name])
        if not _cost_limits(target):
            continue
        best = min(starts, key=excess)
        if excess(best) == 0:
            continue
        levels = descend(problem.space, best, excess)
        if excess(levels) > 0:
            raise InfeasibleError(_explain(problem, target, base[target.name], (*starts, levels)))
        found[target.name] = levels
    return found


def descend(space: SearchSpace, start: tuple[int, ...], loss: Loss) -> tuple[int, ...]:
    """The levels at which no change of a single group lowers the loss: exact where groups add up, as sizes do."""
    levels, best = start, loss(start)
    improved = True
    while improved and best > 0:
        improved = False
        for index, group in enumerate(space.groups):
            for level in range(len(group.bits)):
                trial = (*levels[:index], level, *levels[index + 1 :])
                if level != levels[index] and (value := loss(trial)) < best:
                    levels, best, improved = trial, value, True
    return levels


def _cost_limits(target: Target) -> dict[str, float]:
    return {limit: b for limit, b in target.constraints.set_limits().items() if limit != "max_drop_points"}


def _cost(target: Target, assignment: Assignment, base: Mapping[str, float]) -> dict[str, float]:
    return figures(target.costs(target.legalize(assignment)[0]), base)


def _excess(space: SearchSpace, target: Target, base: Mapping[str, float]) -> Loss:
    """The sum of relative excesses over the target's limits on cost; 0 when all hold."""
    limits = _cost_limits(target)

    def loss(levels: tuple[int, ...]) -> float:
        cost = _cost(target, space.assignment(levels), base)
        for limit in limits:
            if LIMIT_OF[limit] not in cost:
                raise InputError(
                    f"{LIMIT_OF[limit]} is unknown on this target, so its limit cannot be judged",
                    where=f"target {target.name!r}",
                    got=f"{limit} {limits[limit]:g}",
                    expected="limits on what the profile can give",
                )
        # A latency rise may be negative or limited to 0, hence the scale by the baseline there.
        scale = {"max_latency_rise_ms": base["latency_ms"]}
        return sum(max(0.0, cost[LIMIT_OF[n]] - bound) / max(scale.get(n, bound), 1e-9) for n, bound in limits.items())

    return loss


def _explain(problem: Problem, target: Target, base: Mapping[str, float], starts: tuple[tuple[int, ...], ...]) -> str:
    """One line: each limit with the smallest value that can be reached alone, and what blocks more."""
    space, parts = problem.space, []
    for limit, bound in _cost_limits(target).items():
        figure = LIMIT_OF[limit]

        def loss(levels: tuple[int, ...], figure: str = figure) -> float:
            return _cost(target, space.assignment(levels), base)[figure]

        # A latency rise may be negative, where `descend` would stop: shifted by the baseline it is a latency.
        shift = base["latency_ms"] if limit == "max_latency_rise_ms" else 0.0
        smallest = descend(space, min(starts, key=loss), lambda levels, f=loss, s=shift: f(levels) + s)  # type: ignore[misc]
        word = "smallest reachable" if figure == "size_bytes" else "smallest found"
        value = loss(smallest)
        name = called(figure)
        parts.append(f"{name} limit {shown(figure, bound)}: {word} {name} is {shown(figure, value)}")
        if value > bound:
            parts.extend(_blockers(problem, target, base, smallest, figure))
    if len(_cost_limits(target)) > 1:
        parts.append("no assignment was found that meets all of them at once")
    return f"limits cannot be met on {target.name}: {'; '.join(parts)}"


def _blockers(
    problem: Problem, target: Target, base: Mapping[str, float], levels: tuple[int, ...], figure: str
) -> list[str]:
    """What pins and rules cost in this figure, and where the target falls back to something wider."""
    assignment = problem.space.assignment(levels)
    now = _cost(target, assignment, base)[figure]
    gains: list[tuple[float, str]] = []
    for group in problem.space.groups:
        freed = {b: Assignment.of({**assignment, **dict.fromkeys(group.layers, b)}) for b in BIT_WIDTHS}
        saved = {b: now - _cost(target, freed[b], base)[figure] for b in BIT_WIDTHS if b not in group.bits}
        bits = max(saved, key=lambda b: saved[b], default=group.bits[0])
        if saved.get(bits, 0.0) > 0:
            allowed, gain = "/".join(map(str, group.bits)), shown(figure, saved[bits])
            gains.append((saved[bits], f"{group.name} is limited to {allowed} bits ({bits} would save {gain})"))
    parts = [text for _, text in sorted(gains, reverse=True)[:3]]
    narrowest = problem.space.assignment(problem.space.uniform(4))
    reasons = Counter(f"{f.requested} runs as {f.executed} ({f.reason})" for f in target.legalize(narrowest)[1])
    return parts + [f"on {count} layers {reason}" for reason, count in reasons.most_common(2)]
