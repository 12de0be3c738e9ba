"""Choose the range that an activation quantizer covers, from histograms of what calibration saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.nn.ptq.entropy import least_divergence
from haq.nn.quantizers import affine_parameters

FloatArray = NDArray[np.float64]
BINS = 2048
PERCENTILE = 0.9999
"""What the percentile observer keeps: of a ReLU-like operand all but the largest 0.01 % of its numbers."""


@dataclass(frozen=True, eq=False)
class Histograms:
    """What calibration saw of n operands.

    low, high: (n,) the least and the largest number. counts: (n, BINS) numbers other than 0 in equal bins between low
    and high. zeros: (n,) how many were exactly 0: half of a ReLU's output, and free of error in any affine quantizer.
    """

    low: FloatArray
    high: FloatArray
    counts: FloatArray
    zeros: FloatArray

    @property
    def centres(self) -> FloatArray:
        """(n, BINS) middle of every bin."""
        steps = (np.arange(BINS) + 0.5) / BINS
        return self.low[:, None] + (self.high - self.low)[:, None] * steps


Ranges = tuple[FloatArray, FloatArray]
Observer = Callable[[Histograms, int], Ranges]


def minmax(histograms: Histograms, levels: int) -> Ranges:
    """Everything that was seen."""
    return histograms.low, histograms.high


def percentile(histograms: Histograms, levels: int) -> Ranges:
    """All but the outermost 0.01 % at either end; zeros count as seen."""
    counts = histograms.counts.copy()
    rows = np.arange(len(counts))
    counts[rows, _bin_of_zero(histograms)] += histograms.zeros
    cumulative = np.cumsum(counts, axis=1)
    share = cumulative / np.maximum(cumulative[:, -1:], 1)
    width = (histograms.high - histograms.low) / BINS
    first = np.argmax(share > 1 - PERCENTILE, axis=1)
    last = np.argmax(share >= PERCENTILE, axis=1)
    return histograms.low + first * width, histograms.low + (last + 1) * width


def mse(histograms: Histograms, levels: int) -> Ranges:
    """The ranges with the least mean squared error of quantization to levels + 1 codes.

    Searches the two ends in turn, twice, on a coarse and then a fine grid: the error is a smooth trade between
    clipping and rounding (Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1).
    """
    whole = np.ones_like(histograms.low)
    coarse, fine = np.linspace(-0.98, 0.0, 50), np.linspace(-0.018, 0.018, 19)
    high_share = _best(histograms, levels, whole[:, None] + coarse, whole, ends="high")
    low_share = _best(histograms, levels, whole[:, None] + coarse, high_share, ends="low")
    high_share = _best(histograms, levels, whole[:, None] + coarse, low_share, ends="high")
    high_share = _best(histograms, levels, high_share[:, None] + fine, low_share, ends="high")
    low_share = _best(histograms, levels, low_share[:, None] + fine, high_share, ends="low")
    return histograms.low * low_share, histograms.high * high_share


def entropy(histograms: Histograms, levels: int) -> Ranges:
    """The ranges whose codes tell most of the numbers' distribution; both ends shrink by one share."""
    shares = np.array([
        least_divergence(low, high, counts, levels)
        for low, high, counts in zip(histograms.low, histograms.high, histograms.counts, strict=True)
    ])  # fmt: skip
    return histograms.low * shares, histograms.high * shares


OBSERVERS: Mapping[str, Observer] = {"minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy}
DEFAULT_OBSERVER = "mse"
"""The least divergence from FP32 of the four: experiments/accuracy."""


def _best(histograms: Histograms, levels: int, shares: FloatArray, other: FloatArray, *, ends: str) -> FloatArray:
    """The (n,) share of one range end with the least error; the widest wins a tie, so ranges shrink for a reason."""
    shares = np.clip(shares, 0.0, 1.0)[:, ::-1]
    errors = np.stack(
        [_error(histograms, levels, *((other, share) if ends == "high" else (share, other))) for share in shares.T]
    )
    return np.take_along_axis(shares, np.argmin(errors, axis=0)[:, None], axis=1)[:, 0]


def _error(histograms: Histograms, levels: int, low_share: FloatArray, high_share: FloatArray) -> FloatArray:
    """(n,) summed squared quantization error of the histograms for ranges (low * low_share, high * high_share)."""
    scale, zero_point = affine_parameters(histograms.low * low_share, histograms.high * high_share, levels)
    step, zero = scale.astype(np.float64)[:, None], zero_point[:, None]
    centres = histograms.centres
    rounded = np.clip(np.rint(centres / step), -zero, levels - zero) * step
    error: FloatArray = np.einsum("nb,nb->n", histograms.counts, np.square(rounded - centres))
    return error


def _bin_of_zero(histograms: Histograms) -> NDArray[np.int64]:
    width = histograms.high - histograms.low
    position = np.where(width > 0, -histograms.low / np.where(width > 0, width, 1.0), 0.0)
    return np.clip((position * BINS).astype(np.int64), 0, BINS - 1)
