"""What is predicted to be lost at every rung of every group: measured where it was, by rounding noise elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from haq.diagnose.rungs import Pricing
from haq.terms import Floats

LEAST = 1e-3
"""The share of a loss that is always taken to come from where it was not seen: no group is free to stay narrow."""


@dataclass(frozen=True)
class Known:
    """What measurements say, in nats or points. total: lost as it runs now.

    alone: group -> what raising it alone to its widest regains. left: (group, level) -> the share of that which is
    still lost at the level.
    """

    total: float
    alone: Mapping[int, float]
    left: Mapping[tuple[int, int], float]

    def with_alone(self, group: int, regained: float) -> Known:
        return replace(self, alone={**self.alone, group: regained})

    def with_left(self, group: int, level: int, share: float) -> Known:
        return replace(self, left={**self.left, (group, level): share})


def predicted(options: Pricing, known: Known) -> Floats:
    """(groups, levels) of losses that add up to the total as it runs now.

    Infinite where there is no such level, or nothing to expect of it.

    A group of which nothing is known takes its part of what the others leave unexplained, by its rounding noise. A
    wider rung loses 4^-(bits more) of its group's loss until it was measured.
    """
    groups = len(options.groups)
    own = np.zeros(groups)
    for group, value in known.alone.items():
        own[group] = max(value, 0.0)
    if own.sum() > known.total > 0:
        own *= known.total / own.sum()
    unknown = [group for group in range(groups) if group not in known.alone]
    _spread(own, unknown or range(groups), max(known.total - own.sum(), LEAST * known.total), options)
    table = np.full((groups, max((len(row) for row in options.noise), default=1)), np.inf)
    for group, noise in enumerate(options.noise):
        share = noise / noise[0] if noise[0] > 0 else np.ones(len(noise))
        for level in range(len(noise)):
            share[level] = known.left.get((group, level), share[level])
        possible = np.flatnonzero(np.isfinite(share))
        table[group, possible] = own[group] * share[possible]
    return table


def _spread(own: Floats, groups: Iterable[int], amount: float, options: Pricing) -> None:
    """Add an amount to some groups in the proportion of what raising them could undo."""
    chosen = np.fromiter(groups, dtype=np.intp)
    room = np.array([options.noise[group][0] - options.noise[group][-1] for group in chosen])
    if room.sum() > 0:
        own[chosen] += amount * room / room.sum()
