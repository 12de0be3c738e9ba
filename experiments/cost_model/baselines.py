"""Naive predictors of latency, which a cost model must beat where the network is new; they see the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Point:
    """A measured row. series: network, input, target and precision; kind: device and precision; macs: per batch."""

    id: str
    series: tuple[str, ...]
    kind: tuple[str, ...]
    batch: int
    macs: float
    latency_ms: float


Predictor = Callable[[Sequence[Point], Sequence[Point]], dict[str, float]]
"""(seen, held out) -> row id -> latency in milliseconds; rows that it can say nothing about are left out."""


def line_over_batches(seen: Sequence[Point], held: Sequence[Point]) -> dict[str, float]:
    """a + c x batch for every series: interpolation, which knows nothing of any other network."""
    return _lines(seen, held, key=lambda p: p.series, x=lambda p: p.batch)


def line_over_macs(seen: Sequence[Point], held: Sequence[Point]) -> dict[str, float]:
    """a + b x multiply-accumulates over all networks of the same device and precision."""
    return _lines(seen, held, key=lambda p: p.kind, x=lambda p: p.macs)


def macs_ratio(seen: Sequence[Point], held: Sequence[Point]) -> dict[str, float]:
    """In proportion to multiply-accumulates: the median rate of the same device and precision."""
    found = {}
    for point in held:
        rates = [other.macs / other.latency_ms for other in seen if other.kind == point.kind]
        if rates:
            found[point.id] = point.macs / float(np.median(rates))
    return found


def _lines(
    seen: Sequence[Point], held: Sequence[Point], key: Callable[[Point], object], x: Callable[[Point], float]
) -> dict[str, float]:
    """Least squares of the relative error, a and b of at least 0 left to themselves; needs two distinct x."""
    found = {}
    for point in held:
        group = [other for other in seen if key(other) == key(point)]
        if len({x(other) for other in group}) < 2:
            continue
        scale = 1 / np.array([other.latency_ms for other in group])
        design = np.stack([np.ones(len(group)), np.array([x(other) for other in group])], axis=1)
        a, b = np.linalg.lstsq(design * scale[:, None], np.ones(len(group)), rcond=None)[0]
        found[point.id] = float(a + b * x(point))
    return found


BASELINES: dict[str, Predictor] = {
    "a + c x batch": line_over_batches,
    "a + b x MACs": line_over_macs,
    "MACs ratio": macs_ratio,
}
