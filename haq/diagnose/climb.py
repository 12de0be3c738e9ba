"""Measures points of a recovery on the bench, and remembers what they say about each group's losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from haq.accuracy import paired_drop_interval
from haq.allocate import Levels
from haq.diagnose.effects import is_measured, regained, size
from haq.diagnose.finding import Bench, Change, Outcome
from haq.diagnose.localize import localize
from haq.diagnose.losses import Known, predicted
from haq.diagnose.recovery import Limits, Point
from haq.diagnose.rungs import Pricing
from haq.precision import FP32, Precision
from haq.terms import Floats

LEARNED = 4
"""Rungs that are measured alone after an allocation that missed its limit."""

LOOKED_INTO = 32
"""Networks that group testing may measure."""

UNEXPLAINED = 0.1
"""The share of the loss that may stay unexplained by the groups that were found before others are looked for."""


class Climb:
    """The points of one network between now and its widest. It changes as it learns and as `repairs` are kept."""

    def __init__(
        self,
        bench: Bench,
        options: Pricing,
        limits: Limits,
        minimize: Mapping[str, float],
        progress: Callable[[str, int], None],
    ) -> None:
        self.bench, self.options, self.limits = bench, options, limits
        self.repairs = Change()
        self._around: Levels = options.now
        costs = options.costs(options.now)
        self.weights = {name: weight / costs[name] for name, weight in minimize.items() if costs.get(name)}
        self._progress, self._known = progress, Known(0.0, {}, {})
        self._measured: set[Change] = set()

    def tell(self, what: str) -> None:
        self._progress(what, len(self._measured))

    def outcome(self, levels: Levels) -> Outcome:
        """What the network answers at these levels, with the repairs that are kept."""
        change = self.repairs | Change(raised=self.options.raised(levels))
        self._measured.add(change)
        return self.bench.measure(change)

    def point(self, levels: Levels) -> Point:
        outcome, fp32 = self.outcome(levels), self.bench.fp32()
        interval = None
        if outcome.scores is not None and fp32.scores is not None:
            interval = paired_drop_interval(fp32.scores, outcome.scores)
        drop = 100 * (fp32.value - outcome.value)
        change = self.repairs | Change(raised=self.options.raised(levels))
        return Point(change, outcome, drop, interval, self.options.costs(levels))

    def accurate(self, levels: Levels) -> bool:
        """Whether the measured drop is within its limit."""
        return "max_drop_points" not in self.point(levels).excess(self.limits)

    def affordable(self, levels: Levels, bounds: Mapping[str, float]) -> bool:
        """Whether the modelled costs are within bounds; unknown ones are not."""
        costs = self.options.costs(levels)
        return all(costs.get(name, bound + 1) <= bound for name, bound in bounds.items())

    def price(self, levels: Levels) -> float:
        """What is minimized: a weighted sum of figures, each relative to now."""
        costs = self.options.costs(levels)
        return sum(weight * costs[name] for name, weight in self.weights.items())

    @property
    def known(self) -> Known:
        return self._known

    def losses(self) -> Floats:
        """(groups, levels) of predicted loss. Groups are looked for by group testing when it is first asked for."""
        if not self._known.total:
            self._known = Known(self._lost(self.options.now), self._alone(), {})
        return predicted(self.options, self._known)

    def learn(self, levels: Levels) -> None:
        """Measure what the point raises and was only predicted, so that the next allocation knows better.

        Each group is measured where the groups that were found to lose most are raised: they would hide the others.
        """
        widest = self.options.widest
        raised = [(group, level) for group, level in enumerate(levels) if level]
        new = [(g, level) for g, level in raised if g not in self._known.alone or self._is_guess(g, level)]
        for group, level in new[:LEARNED]:
            self.tell("learning")
            least = self._lost(self._with(group, widest[group]))
            if group not in self._known.alone:
                self._known = self._known.with_alone(group, self._lost(self._with(group, 0)) - least)
            whole = self._known.alone[group]
            if self._is_guess(group, level) and whole > 0:
                share = (self._lost(self._with(group, level)) - least) / whole
                self._known = self._known.with_left(group, level, min(max(share, 0.0), 1.0))

    def _is_guess(self, group: int, level: int) -> bool:
        return level < self.options.widest[group] and (group, level) not in self._known.left

    def _with(self, group: int, level: int) -> Levels:
        return tuple(level if other == group else own for other, own in enumerate(self._around))

    def _lost(self, levels: Levels) -> float:
        """Nats, or points where the task shows no logits."""
        return max(size(regained(self.outcome(levels), self.bench.fp32())), 0.0)

    def _alone(self) -> dict[int, float]:
        """Group -> what raising it regains, for those that group testing looked into.

        A group that loses much hides what the others lose, so that they are looked for again with it raised.
        """
        grouped, whole = _Grouped(self), self._lost(self.options.now)
        found: dict[int, float] = {}
        raised, spent = Change(), 0
        while spent < LOOKED_INTO:
            hidden = [name for name in grouped.layers if name not in dict(raised.raised)]
            shares = localize(
                grouped, raised, hidden, most=LOOKED_INTO - spent, tell=lambda what, more: self.tell(what)
            )
            spent += shares.measured
            for name, effect in shares.layers.items():
                found[int(name)] = max(size(effect), found.get(int(name), 0.0))
            culprits = [name for name, effect in shares.layers.items() if is_measured(effect)]
            if not culprits:
                break
            raised = raised | Change(raised=tuple((name, grouped.widest(name)) for name in culprits))
            self._around = grouped.levels(raised)
            if self._lost(self._around) <= UNEXPLAINED * whole:
                break
        return found


class _Grouped:
    """The bench with groups for layers, each raised to its own widest; their names are their numbers."""

    def __init__(self, climb: Climb) -> None:
        self._climb = climb

    @property
    def layers(self) -> tuple[str, ...]:
        """Groups that can be raised at all."""
        return tuple(str(group) for group, level in enumerate(self._climb.options.widest) if level)

    @property
    def samples(self) -> int:
        return self._climb.bench.samples

    @property
    def forwards(self) -> float:
        return self._climb.bench.forwards

    def fp32(self) -> Outcome:
        return self._climb.bench.fp32()

    def widest(self, layer: str) -> Precision:
        return FP32

    def measure(self, change: Change) -> Outcome:
        return self._climb.outcome(self.levels(change))

    def levels(self, change: Change) -> Levels:
        raised, widest = {int(name) for name, _ in change.raised}, self._climb.options.widest
        return tuple(level if group in raised else 0 for group, level in enumerate(widest))
