"""Pareto dominance and hypervolume: arrays in, arrays out; every objective is minimized."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(losses: ArrayLike) -> NDArray[np.bool_]:
    """Mark the rows that no other row beats; of identical rows only the first is marked.

    losses: (n, k) floats without NaN, minimized. Row a beats row b when a <= b everywhere and a < b somewhere.
    Returns (n,) booleans.
    """
    rows = _table(losses)
    keep = np.zeros(len(rows), dtype=bool)
    if rows.shape[1] in (2, 3):
        # Stable: of identical rows the first comes first. A row can only be beaten by an earlier one.
        order = np.lexsort(rows.T[::-1])
        stairs = Stairs()
        for index, (x, y) in zip(order.tolist(), rows[order, -2:].tolist(), strict=True):
            keep[index] = stairs.add(x, y)
        return keep
    # np.unique sorts lexicographically, too, and returns first occurrences.
    unique, first = np.unique(rows, axis=0, return_index=True)
    front = np.empty_like(unique)
    size = 0
    for row, index in zip(unique, first, strict=True):
        if not (front[:size] <= row).all(axis=1).any():
            front[size] = row
            size += 1
            keep[index] = True
    return keep


class Stairs:
    """Points of two objectives that none beats, by the first one, rising; it changes with every point that is added."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []

    def add(self, x: float, y: float) -> bool:
        """Take a point in, unless one that is there is nowhere larger; returns whether it was taken in."""
        place = bisect_right(self.x, x)
        if place and self.y[place - 1] <= y:
            return False
        start = place - 1 if place and self.x[place - 1] == x else place
        end = place
        while end < len(self.y) and self.y[end] >= y:
            end += 1
        self.x[start:end], self.y[start:end] = [x], [y]
        return True


def hypervolume(losses: ArrayLike, reference: Sequence[float]) -> float:
    """The volume that the rows dominate below the reference point, exactly, for any number of objectives.

    losses: (n, k) floats, minimized; rows that do not beat the reference in every objective add nothing.
    reference: k floats; a hypervolume means nothing without it, so state it with every figure.
    Cost: n^(k-1) log n (hypervolume by slicing objectives, While et al. 2006), meant for k <= 4.
    """
    rows, point = _table(losses), np.asarray(reference, dtype=float)
    assert point.shape == (rows.shape[1],), f"reference has {point.size} objectives, losses have {rows.shape[1]}"
    inside = rows[(rows < point).all(axis=1)]
    return _slices(inside[non_dominated(inside)], point)


def _table(losses: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(losses, dtype=float)
    assert rows.ndim == 2, f"losses must be (n, k), got shape {rows.shape}"
    assert not np.isnan(rows).any(), "losses contain NaN"
    return rows


def _slices(rows: NDArray[np.float64], point: NDArray[np.float64]) -> float:
    """Sum over slabs between consecutive values of the last objective of thickness times the volume below."""
    if len(rows) == 0:
        return 0.0
    rows = rows[np.argsort(rows[:, -1], kind="stable")]
    if rows.shape[1] == 1:
        return float(point[0] - rows[0, 0])
    if rows.shape[1] == 2:
        # The slab of row i is as wide as the best first objective among rows 0..i.
        heights = np.diff(np.append(rows[:, 1], point[1]))
        return float(((point[0] - np.minimum.accumulate(rows[:, 0])) * heights).sum())
    total = 0.0
    heights = np.diff(np.append(rows[:, -1], point[-1]))
    for i, height in enumerate(heights):
        if height > 0:
            total += height * _slices(rows[: i + 1, :-1], point[:-1])
    return total
