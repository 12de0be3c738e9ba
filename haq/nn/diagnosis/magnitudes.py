"""A histogram of any numbers whose bins grow with them, and what rounding to a grid would cost the numbers in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.nn.quantizers import affine_parameters

Floats = NDArray[np.float64]
Range = tuple[float, float]

MANTISSA_BITS = 6
"""Bins per octave: 64, so that a bin is at most 1.6 % as wide as its numbers are large."""
_SHIFT = 23 - MANTISSA_BITS
_HALF = 1 << (31 - _SHIFT)
_INFINITE = 255 << MANTISSA_BITS
COARSE = 2.0 ** -np.arange(0.0, 10.0, 0.25)
FINE = 2.0 ** np.linspace(-0.2, 0.2, 9)
"""Clipping points that are tried, as shares of the largest magnitude: down to a thousandth, then around the best."""


def counted(x: Tensor) -> Floats:
    """(2 x _HALF,) how many of `x` lie in every bin; counts of several tensors add up.

    The upper bits of a float32 are its bin (sign, exponent, first bits of the fraction), so that the range need not be
    known before, and no outlier makes the other bins coarse.
    """
    bits = x.detach().float().contiguous().view(torch.int32).flatten() >> _SHIFT
    found: Floats = torch.bincount(bits + _HALF, minlength=2 * _HALF).double().cpu().numpy()
    return found


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """The bins that hold numbers, from the least to the largest. low, high, counts: (n,) ends and contents."""

    low: Floats
    high: Floats
    counts: Floats

    @classmethod
    def of(cls, counts: Floats) -> Magnitudes:
        """The finite numbers in what `counted` gave; zeros have bins of almost no width."""
        code = np.arange(_HALF)
        ends = (np.minimum(np.append(code, _HALF), _INFINITE) << _SHIFT).astype(np.int32).view(np.float32)
        ends = np.where(np.isfinite(ends), ends.astype(np.float64), 2.0**128)
        positive, negative = counts[_HALF:].copy(), counts[:_HALF].copy()  # as int32 a set sign bit comes first
        positive[_INFINITE:] = negative[_INFINITE:] = 0.0
        low = np.concatenate([-ends[1:][::-1], ends[:-1]])
        high = np.concatenate([-ends[:-1][::-1], ends[1:]])
        both = np.concatenate([negative[::-1], positive])
        return cls(low[both > 0], high[both > 0], both[both > 0])

    @cached_property
    def total(self) -> float:
        return float(self.counts.sum())

    @cached_property
    def power(self) -> float:
        """Summed squares, as if each bin were evenly filled."""
        a, b = self.low, self.high
        return float(self.counts @ ((a * a + a * b + b * b) / 3))

    def error(self, low: float, high: float, levels: int) -> float:
        """Summed squared error of rounding to levels + 1 codes between low and high, each bin evenly filled."""
        scale, zero = affine_parameters(np.array([low]), np.array([high]), levels)
        step, bottom = float(scale[0]), -float(zero[0])
        ends = np.stack([self.low, self.high]) / step
        below, above = _integral(ends, bottom, bottom + levels)
        return float(self.counts @ ((above - below) / (ends[1] - ends[0]))) * step * step

    def best_range(self, seen: Range, levels: int) -> Range:
        """The range with the least squared error, of those within `seen` that clip both signs at one magnitude."""
        low, high = min(seen[0], 0.0), max(seen[1], 0.0)
        largest = max(-low, high)
        if largest == 0 or not len(self.counts):
            return low, high

        def clipped(share: float) -> Range:
            return max(low, -share * largest), min(high, share * largest)

        best = min(COARSE, key=lambda share: self.error(*clipped(share), levels))
        fine = [*(share for share in best * FINE[::-1] if share < 1.0), best]
        return clipped(min(fine, key=lambda share: self.error(*clipped(share), levels)))

    def outside(self, low: float, high: float) -> float:
        """The share of numbers below `low` or above `high`."""
        width = self.high - self.low
        below = np.clip((low - self.low) / width, 0.0, 1.0)
        above = np.clip((self.high - high) / width, 0.0, 1.0)
        return float(self.counts @ np.minimum(below + above, 1.0)) / max(self.total, 1.0)

    def between(self, edges: Floats) -> Floats:
        """(len(edges) - 1,) how many numbers lie between neighbouring edges."""
        if not len(self.counts):
            return np.zeros(len(edges) - 1)
        points = np.stack([self.low, self.high], axis=1).ravel()
        after = np.cumsum(self.counts)
        found: Floats = np.diff(np.interp(edges, points, np.stack([after - self.counts, after], axis=1).ravel()))
        return found


def _integral(u: Floats, bottom: float, top: float) -> Floats:
    """The integral from 0 to u, in steps, of the squared distance to the nearest whole number in bottom ... top."""

    def inside(v: Floats) -> Floats:
        nearest = np.rint(v)
        off = v - nearest
        whole: Floats = nearest / 12 + off * off * off / 3  # a power of 3 takes ten times as long
        return whole

    held = np.clip(u, bottom, top)
    beyond = u - held
    far: Floats = beyond * beyond * beyond / 3
    return inside(held) + far
