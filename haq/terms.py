"""Figures that add up over groups and pairs of groups: what a sum of costs is, seen from the choices alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Terms:
    """One figure of a point, which has one level per group: constant + own terms + terms of pairs of groups.

    unary: per group, (levels,) what its level adds. pairs: (a, b) with a < b -> (levels of a, levels of b). NaN where
    what is added is unknown; so is every sum that contains it.
    """

    constant: float
    unary: tuple[Floats, ...]
    pairs: Mapping[Pair, Floats] = field(default_factory=dict)

    def total(self, levels: ArrayLike) -> Floats:
        """(points,) the figure of each point, the same to the last digit whatever stands beside it.

        levels: (points, groups) integers, each an index into its group's terms.
        """
        points = np.asarray(levels, dtype=np.intp)
        # Row by row in memory, so that every row is added up in one and the same order.
        total = self.constant + np.ascontiguousarray(self._padded[np.arange(len(self.unary)), points]).sum(axis=1)
        for (a, b), table in self.pairs.items():
            total += table[points[:, a], points[:, b]]
        return np.asarray(total, dtype=np.float64)

    @cached_property
    def _padded(self) -> Floats:
        padded = np.full((len(self.unary), max((len(row) for row in self.unary), default=0)), np.nan)
        for group, row in enumerate(self.unary):
            padded[group, : len(row)] = row
        return padded


@dataclass(frozen=True)
class GroupTerms:
    """The costs of a network on a target over the groups of a search space, exact but for the rounding of sums.

    figures: the sums, by their names in every haq file. peak: one sum for each step of the schedule at which the
    activation peak may be reached; the peak is the largest of them.
    """

    figures: Mapping[str, Terms]
    peak: tuple[Terms, ...]
