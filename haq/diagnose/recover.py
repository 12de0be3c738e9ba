"""Buys accuracy back at the least cost: free repairs, then the cheapest raised layers, then back what is not needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from haq.allocate import LOSS, Levels, allocate
from haq.diagnose.climb import Climb
from haq.diagnose.effects import is_measured, regained, size
from haq.diagnose.finding import Bench, Change, Diagnosis, Repair
from haq.diagnose.recovery import Limits, Point, Recovery, Step, Vain
from haq.diagnose.rungs import Pricing

ROUNDS = 6
"""Allocations that are measured; where none of them holds, the whole network is raised."""

ALLOCATIONS = 24
"""Budgets that are tried: most give a point that was measured already."""

RESOLVED = 0.002
"""Budgets that differ by less, relatively, are one. Coarser ones miss points that only just hold, and pay for it."""

SLOWEST = 0.7
"""A budget that was too large becomes smaller by this at least."""

SINGLY = 8
"""Up to so many raised groups are tried back one by one; more in halves, so that it takes O(k log n) measurements."""

TRIALS = 32
"""Measurements that putting back may take."""

SHOWN_STEPS = 12
"""Raised groups that are steps of their own; the others together are one."""

BOTH: Mapping[str, float] = {"latency_ms": 1.0, "size_bytes": 1.0}
"""What is minimized unless asked otherwise: figures relative to now, by weight."""

Progress = Callable[[str, int], None]
"""(what is being done, networks measured so far)."""


def recover(
    bench: Bench,
    diagnosis: Diagnosis,
    options: Pricing,
    limits: Limits,
    *,
    minimize: Mapping[str, float] = BOTH,
    progress: Progress | None = None,
) -> Recovery:
    """The cheapest change that meets the limits, measured; or how far from them the nearest points are.

    A network that holds its limits as it is stays as it is: what is slow for being narrow, `haq diagnose` tells.

    bench: of the network that runs as the first rungs of `options` say. minimize: figure -> weight of its part relative
    to now. Free repairs of the diagnosis' findings come first, each only if it measurably helps. Then the exact
    allocator chooses what to raise; what was measured corrects its losses and its budget, and the whole network at the
    widest that the target executes is the last answer. At last every raised group is tried back, the dearest first. A
    drop is judged by its estimate on the judged samples; how far it may be from that is in the interval.
    """
    start, spent = time.perf_counter(), bench.forwards
    climb = Climb(bench, options, limits, minimize, progress or (lambda what, done: None))
    before = climb.point(options.now)
    repairs, vain = _free(climb, (r for f in diagnosis.findings for r in _repairs(f.suspicion.change)))
    search = _Search(climb, vain)
    levels: Levels = options.now
    nearest: tuple[Point, ...] = ()
    if climb.point(levels).excess(limits):
        found = search.within(limits.costs)
        levels, nearest = (_put_back(climb, found), ()) if found is not None else search.nearest()
    after = climb.point(levels)
    return Recovery(
        limits, before, after, _steps(climb, repairs, levels), tuple(vain), nearest if after.excess(limits) else (),
        bench.samples, bench.forwards - spent, time.perf_counter() - start,
    )  # fmt: skip


def _repairs(change: Change | None) -> tuple[Change, ...]:
    """What a finding can do for free: its repairs, together; a raised layer is not free."""
    return (Change(change.repairs),) if change is not None and change.repairs else ()


def _free(climb: Climb, offered: Iterable[Change]) -> tuple[list[Change], list[Vain]]:
    """Repairs that help, best first, each on top of those before it, until the limit on the drop holds."""
    kept: list[Change] = []
    waiting = list(dict.fromkeys(offered))
    while waiting and "max_drop_points" in climb.point(climb.options.now).excess(climb.limits):
        climb.tell("free repairs")
        base = climb.bench.measure(climb.repairs)
        effects = {change: regained(base, climb.bench.measure(climb.repairs | change)) for change in waiting}
        best = max(waiting, key=lambda change: size(effects[change]))
        if not is_measured(effects[best]):
            break
        kept.append(best)
        climb.repairs = climb.repairs | best
        waiting.remove(best)
    if "max_drop_points" in climb.point(climb.options.now).excess(climb.limits):
        return kept, [Vain(_named(change.repairs), "no measurable gain") for change in waiting]
    return kept, []


class _Search:
    """Looks for the cheapest accurate point. It changes as it learns: what failed is in `vain`."""

    def __init__(self, climb: Climb, vain: list[Vain]) -> None:
        self._climb, self._vain, self._options = climb, vain, climb.options

    def within(self, bounds: Mapping[str, float]) -> Levels | None:
        """The cheapest point found that holds the drop and, as far as it is modelled, the bounds on costs.

        The budget of predicted loss starts at the share that the drop may have of what it is now. Then it is bisected
        between what failed and what held: a larger budget is cheaper, and a prediction is no measurement.
        """
        climb, options = self._climb, self._options
        total = float(options.model(climb.losses()).value(LOSS, [options.now])[0])
        held: list[Levels] = []
        failed = [] if climb.accurate(options.now) else [options.now]
        lower, upper = 0.0, total
        budget = total * self._allowed(options.now) if failed else total
        for _ in range(ALLOCATIONS):
            if len(held) + len(failed) > ROUNDS or upper - lower <= RESOLVED * upper:
                break
            climb.tell("fallbacks")
            model = options.model(climb.losses())
            levels = allocate(model, {**bounds, LOSS: budget}, minimize=climb.weights)
            if levels is None or levels in held or climb.accurate(levels):
                # Nothing is within the bounds with so little loss, or it holds: either way the budget may grow.
                held += [levels] if levels is not None and levels not in held else []
                lower, budget = budget, (budget + upper) / 2
                continue
            if levels not in failed:
                failed.append(levels)
                self._missed(levels)
                climb.learn(levels)
            upper = float(options.model(climb.losses()).value(LOSS, failed).min())
            wanted = upper * min(self._allowed(levels), SLOWEST)
            budget = wanted if wanted > lower else (lower + upper) / 2
        if not held and climb.affordable(options.widest, bounds):
            if climb.accurate(options.widest):
                return options.widest
            self._missed(options.widest)
        return min(held, key=climb.price, default=None)

    def nearest(self) -> tuple[Levels, tuple[Point, ...]]:
        """Where limits clash: a point to report, and the two nearest; the clash may vanish on a closer look."""
        climb, bounds = self._climb, self._climb.limits.costs
        accurate = self.within({}) if bounds else None
        accurate = self._options.widest if accurate is None else _put_back(climb, accurate)
        model = self._options.model(climb.losses())
        cheap = allocate(model, bounds, minimize=LOSS)
        if cheap is None:
            # Not even what costs least is within the costs.
            cheap = allocate(model, {}, minimize={name: 1 / max(bounds[name], 1e-12) for name in bounds})
        assert cheap is not None, "without limits there is a point"
        for levels in (accurate, cheap):
            if not climb.point(levels).excess(climb.limits):
                return levels, ()
        return accurate, tuple(climb.point(levels) for levels in dict.fromkeys((accurate, cheap)))

    def _allowed(self, levels: Levels) -> float:
        """The share of its drop that a point may keep."""
        drop = self._climb.point(levels).drop_points
        return max(self._climb.limits.max_drop_points, 0.0) / drop if drop > 0 else 1.0

    def _missed(self, levels: Levels) -> None:
        point = self._climb.point(levels)
        raised = len(point.change.raised)
        what = f"raising {_listed([layer for layer, _ in point.change.raised])}" if raised else "raising nothing"
        self._vain.append(Vain(what, f"the drop is still {point.drop_points:.2f} points"))


def _put_back(climb: Climb, levels: Levels) -> Levels:
    """The point without what it does not need: every raised group tried back, the dearest first."""
    order = sorted(
        (group for group, level in enumerate(levels) if level),
        key=lambda group: climb.price(_lowered(levels, (group,))),
    )
    half = max(1, len(order) // 2)
    waiting: list[tuple[int, ...]] = (
        [(g,) for g in order] if len(order) <= SINGLY else [tuple(order[:half]), tuple(order[half:])]
    )
    bounds = climb.limits.costs if climb.affordable(levels, climb.limits.costs) else {}
    trials = 0
    while waiting and trials < TRIALS:
        climb.tell("putting back")
        part = waiting.pop(0)
        for trial in _lower(levels, part):
            if climb.price(trial) < climb.price(levels) and climb.affordable(trial, bounds):
                trials += 1
                if climb.accurate(trial):
                    levels = trial
                    break
        else:
            if len(part) > 1:
                half = len(part) // 2
                waiting = [part[:half], part[half:], *waiting]
    return levels


def _lower(levels: Levels, part: tuple[int, ...]) -> list[Levels]:
    """The part as it was; a single group also on every rung below its own."""
    rungs = range(levels[part[0]]) if len(part) == 1 else (0,)
    return [_lowered(levels, part, level) for level in rungs]


def _lowered(levels: Levels, groups: tuple[int, ...], level: int = 0) -> Levels:
    return tuple(level if group in groups else own for group, own in enumerate(levels))


def _steps(climb: Climb, repairs: list[Change], levels: Levels) -> tuple[Step, ...]:
    """The parts of the result, each on top of those before it: repairs, then raised groups, the most useful first."""
    options = climb.options
    raised = sorted(
        (group for group, level in enumerate(levels) if level), key=lambda g: -climb.known.alone.get(g, 0.0)
    )
    shown: list[tuple[int, ...]] = [(group,) for group in raised[:SHOWN_STEPS]]
    if len(raised) > SHOWN_STEPS:
        shown.append(tuple(raised[SHOWN_STEPS:]))
    steps, so_far = [], Change()
    for change in repairs:
        effect = regained(climb.bench.measure(so_far), climb.bench.measure(so_far | change))
        steps.append(Step(_named(change.repairs), change, effect, 0.0, 0.0))
        so_far = so_far | change
    reached, costs = options.now, options.costs(options.now)
    for groups in shown:
        climb.tell("steps")
        reached = tuple(levels[g] if g in groups else own for g, own in enumerate(reached))
        change = Change(raised=tuple(p for g in groups for p in options.rungs[g][levels[g]].items()))
        now = so_far | change
        effect = regained(climb.bench.measure(so_far), climb.bench.measure(now))
        after = options.costs(reached)
        price = {name: after[name] - costs[name] for name in ("latency_ms", "size_bytes") if name in after}
        what = f"raise {_listed([layer for g in groups for layer in options.groups[g]])}"
        if len({precision for _, precision in change.raised}) == 1:
            what += f" to {change.raised[0][1]}"
        steps.append(Step(what, change, effect, price.get("latency_ms"), price.get("size_bytes")))
        so_far, costs = now, after
    return tuple(steps)


def _named(repairs: tuple[Repair, ...]) -> str:
    return ", ".join(f"{repair.kind} {repair.layer}".strip() for repair in repairs)


def _listed(layers: list[str]) -> str:
    return ", ".join(layers) if len(layers) <= 4 else f"{', '.join(layers[:3])} and {len(layers) - 3} more layers"
