"""Reverts layers as NNCF does, by the metric alone: what a recovery is compared with.

Follows `nncf.quantize_with_accuracy_control` (nncf/quantization/algorithms/accuracy_control, `AccuracyAwareLoop` and
`MetricBasedRanker`, as of its commit 05a0461), with its defaults:
- a network that holds the allowed drop is left as it is;
- every group is ranked by the metric that the network reaches with that group alone in floats (its subset of the 300
  hardest samples is all of ours), ties by the order of the network;
- from the best rank on, one group after another goes to floats, for good, until the drop holds; there is no price, no
  width between, and nothing is put back;
- where a step makes the drop worse than the step before, unless the step before was one back, it is undone, and the
  rest is ranked anew on the network as it is then;
- the end is all groups in floats.

What differs: its groups are quantizers that must go together, ours the groups that `haq recover` raises, so that both
choose among the same networks; floats are the widest that the target executes.
"""

from __future__ import annotations

from dataclasses import dataclass

from haq.allocate import Levels
from haq.diagnose.climb import Climb


@dataclass(frozen=True)
class ByMetric:
    """levels: as a `Pricing` counts them. measured: distinct networks."""

    levels: Levels
    measured: int


def by_metric(climb: Climb, to: Levels | None = None) -> ByMetric:
    """The first network on NNCF's way that holds the drop, or the last one of it. to: levels; unless given, widest."""
    return _Way(climb, climb.options.widest if to is None else to).walk()


class _Way:
    """One walk. It changes as it goes: what was measured is counted."""

    def __init__(self, climb: Climb, to: Levels) -> None:
        self._climb, self._to, self._seen = climb, to, set[Levels]()

    def walk(self) -> ByMetric:
        levels, before = self._climb.options.now, self._drop(self._climb.options.now)
        ranked = self._ranked([group for group, level in enumerate(self._to) if level], levels)
        stepped_back = True
        while ranked and not self._climb.accurate(levels):
            group = ranked.pop()
            trial = self._raised(levels, group)
            drop = self._drop(trial)
            if not ranked or self._climb.accurate(trial) or drop <= before or stepped_back:
                levels, stepped_back = trial, False
            else:
                stepped_back = True
                ranked = self._ranked([*ranked, group], levels)
            before = drop
        return ByMetric(levels, len(self._seen))

    def _ranked(self, groups: list[int], levels: Levels) -> list[int]:
        """The best last."""
        return sorted(groups, key=lambda group: -self._drop(self._raised(levels, group)))

    def _drop(self, levels: Levels) -> float:
        self._seen.add(levels)
        return self._climb.point(levels).drop_points

    def _raised(self, levels: Levels, group: int) -> Levels:
        return tuple(self._to[g] if g == group else level for g, level in enumerate(levels))
