"""The entropy observer: clip activations where the codes keep most of what their distribution says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
SHARES = np.linspace(1.0, 0.1, 91)
"""Of the range that was seen."""


def least_divergence(low: float, high: float, counts: FloatArray, levels: int) -> float:
    """The share of the range [low, high] with the least KL divergence (Migacz 2017, "8-bit Inference with TensorRT").

    counts: (bins,) numbers other than 0 in equal bins from low to high. levels: the largest code. What lies outside a
    candidate range counts at its ends; the codes hand each bin they cover an equal part of what they hold. Of equally
    good shares the largest wins; a constant operand keeps its range.
    """
    if not counts.sum() or low == high:
        return 1.0
    edges = low + (high - low) * np.arange(len(counts) + 1) / len(counts)
    centres = (edges[:-1] + edges[1:]) / 2
    divergences = [_divergence(centres, counts, low * share, high * share, levels) for share in SHARES]
    return float(SHARES[int(np.argmin(divergences))])


def _divergence(centres: FloatArray, counts: FloatArray, low: float, high: float, levels: int) -> float:
    """KL(clipped distribution || what the codes say of it), in nats."""
    low, high = min(low, 0.0), max(high, 0.0)
    inside = (centres >= low) & (centres <= high)
    if inside.sum() <= 1:
        return np.inf
    kept, positions = counts[inside], centres[inside]
    clipped = kept.copy()
    clipped[0] += counts[centres < low].sum()
    clipped[-1] += counts[centres > high].sum()
    codes = np.rint((positions - low) / (high - low) * levels).astype(np.int64)
    held, bins = np.bincount(codes, weights=kept), np.bincount(codes, weights=kept > 0)
    told = np.where(kept > 0, (held / np.maximum(bins, 1))[codes], 0.0)
    seen = clipped > 0
    # A bin that only clipping filled: no code tells of it, so the range cuts into the distribution's body.
    floor = 1e-9 * told.sum()
    p, q = clipped / clipped.sum(), np.maximum(told, floor) / max(told.sum(), 1e-300)
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
