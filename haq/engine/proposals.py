"""Where the next candidate comes from: seeds, then the samplers, with every repeat replaced by something new."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from haq.space import SearchSpace

Levels = tuple[int, ...]
TRIES = 64
"""Changes of a repeated proposal before the rest of the space is listed."""

LISTED = 4096
"""Spaces up to this size are listed in full to find what is left; larger ones are never used up by a search."""


@dataclass(frozen=True)
class Proposal:
    """Levels to evaluate next and where they come from, as `Candidate.origin` says it."""

    origin: str
    levels: Levels


def replace_repeat(space: SearchSpace, levels: Levels, is_new: Callable[[Levels], bool], seed: int) -> Levels | None:
    """`levels` when new, else the first new ones near it; None when nothing new is left or was found.

    is_new: False for levels that execute like an earlier candidate on every target. Moves one group by any number of
    levels, then two, and so on, as the seed says.
    """
    if is_new(levels):
        return levels
    rng = np.random.default_rng(seed)
    free = [index for index, group in enumerate(space.groups) if group.is_free]
    for attempt in range(TRIES if free else 0):
        changed = list(levels)
        moves = min(len(free), 1 + attempt // 8)
        for index in rng.choice(free, size=moves, replace=False):
            options = [level for level in range(len(space.groups[index].bits)) if level != levels[index]]
            changed[index] = int(rng.choice(options))
        if is_new(tuple(changed)):
            return tuple(changed)
    if space.size > LISTED:
        return None
    return next((point for point in _everything(space) if is_new(point)), None)


def _everything(space: SearchSpace) -> Iterator[Levels]:
    return itertools.product(*(range(len(group.bits)) for group in space.groups))
