"""The signal-to-noise ratio in decibels, and sums over the channels of a tensor that it is made from."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers: infinite without noise, minus infinite where the noise is not finite."""
    if noise == 0:
        return math.inf
    if not math.isfinite(noise) or signal <= 0:
        return -math.inf
    return 10 * math.log10(signal / noise)


def power(x: Tensor) -> float:
    """Summed squares."""
    flat = x.flatten()
    return float(torch.dot(flat, flat))


def channel_axis(kind: str, dimensions: int) -> int:
    """The axis of channels in what a layer of this kind reads and gives: 1 of convolutions, else the last."""
    return 1 if kind.startswith("conv") else dimensions - 1


class ChannelSums:
    """Sums over all axes but the channels'. It changes: it fills.

    A tensor with more channels than those before (a product over a longer text) adds channels.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self._sum, self._squares = np.zeros(0), np.zeros(0)

    def add(self, x: Tensor, axis: int) -> None:
        others = [a for a in range(x.dim()) if a != axis]
        self.count += x.numel() / max(x.shape[axis], 1)
        self._sum = added(self._sum, _array(x.sum(others)))
        self._squares = added(self._squares, _array(x.square().sum(others)))

    @property
    def mean(self) -> Floats:
        """(channels,)"""
        found: Floats = self._sum / max(self.count, 1.0)
        return found

    @property
    def deviation(self) -> Floats:
        """(channels,)"""
        variance = self._squares / max(self.count, 1.0) - self.mean**2
        found: Floats = np.sqrt(np.maximum(variance, 0.0))
        return found

    @property
    def power(self) -> float:
        return float(self._squares.sum())


def added(a: Floats, b: Floats) -> Floats:
    """The sum; the shorter one is continued with zeros."""
    size = max(len(a), len(b))
    total: Floats = np.pad(a, (0, size - len(a))) + np.pad(b, (0, size - len(b)))
    return total


def largest_of(a: Floats, b: Floats) -> Floats:
    """The elementwise largest; the shorter one is continued with zeros."""
    size = max(len(a), len(b))
    total: Floats = np.maximum(np.pad(a, (0, size - len(a))), np.pad(b, (0, size - len(b))))
    return total


def _array(x: Tensor) -> Floats:
    found: Floats = x.detach().double().cpu().numpy()
    return found
