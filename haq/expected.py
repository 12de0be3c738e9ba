"""Expected hypervolume gain of candidates whose size and latency are known and whose drop is only predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from haq.pareto import Stairs, non_dominated

Floats = NDArray[np.float64]


def expected_gain(costs: Floats, mean: Floats, deviation: Floats, front: Floats, reference: Sequence[float]) -> Floats:
    """(n,) the expected growth of the hypervolume below `reference`, per candidate taken alone.

    costs: (n, 2) exact first and second objective. mean, deviation: (n,) of the normally distributed third one.
    front: (k, 3) objectives of what is known; reference: 3 numbers. All minimized.

    With A(z) the part of the candidate's rectangle in the first two objectives that no front point of third objective
    <= z covers, the gain at a third objective d is the integral of A from d to the reference; its expectation is the
    integral of P(D <= z) A(z), and A is constant between front points (Emmerich et al. 2011 decompose it likewise).
    """
    assert front.shape[1:] == (3,), front.shape
    assert costs.shape[1:] == (2,), costs.shape
    point = np.asarray(reference, dtype=np.float64)
    known = front[(front < point).all(axis=1)]
    known = known[non_dominated(known)]
    known = known[np.argsort(known[:, 2], kind="stable")]
    inside = (costs < point[:2]).all(axis=1)
    ends = np.append(known[:, 2], point[2])
    gain = np.zeros(len(costs))
    below = np.zeros(len(costs))
    stairs, uncovered = Stairs(), (point[:2] - costs[inside]).prod(axis=1)
    for count, end in enumerate(ends):
        if count and stairs.add(*known[count - 1, :2].tolist()):
            uncovered = _uncovered(costs[inside], stairs, point[:2])
        up_to = _integrated(end, mean[inside], deviation[inside])
        gain[inside] += (up_to - below[inside]) * uncovered
        below[inside] = up_to
    return gain


def _integrated(end: float, mean: Floats, deviation: Floats) -> Floats:
    """The integral of P(D <= z) from -infinity to `end`: E[max(0, end - D)]."""
    wide = deviation > 0
    scaled = (end - mean) / np.where(wide, deviation, 1.0)
    density = np.exp(-0.5 * scaled**2) / np.sqrt(2 * np.pi)
    value: Floats = np.where(wide, deviation * (scaled * ndtr(scaled) + density), np.maximum(0.0, end - mean))
    return value


def _uncovered(corners: Floats, stairs: Stairs, reference: Floats) -> Floats:
    """(n,) the area of [corner, reference] that lies in no [point, reference]."""
    # Between one step and the next the stairs are as low as the former.
    left = np.maximum(stairs.x, corners[:, :1])
    width = np.diff(left, axis=1, append=reference[0])
    height = np.maximum(0.0, reference[1] - np.maximum(stairs.y, corners[:, 1:]))
    left_over: Floats = (reference - corners).prod(axis=1) - (width * height).sum(axis=1)
    return left_over
