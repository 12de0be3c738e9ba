"""Batch-norm re-estimation for folded batch norms: every output channel keeps the mean and deviation it had.

A batch norm whose statistics are measured again behind quantized weights multiplies each channel by old deviation / new
deviation and moves its mean back; folded into a weight with one scale per channel this changes the scale and the bias.
"""

from __future__ import annotations

from torch import Tensor

MOST_GAIN = 2.0
"""A channel that rounding has all but wiped out is not blown up to its old size: its shape is gone."""


def restored(rows: Tensor, quantized: Tensor, moments: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """(groups, rows) the gain of every channel's scale, and (channels,) what is added to its bias.

    From the inputs' second moments H and means m: E[y] = w m, Var[y] = w H wᵀ - (w m)² (Peters et al. 2023, "QBitOpt",
    and AIMET re-estimate the same by running data). rows, quantized: (groups, rows, k).
    """
    gains = (_deviation(rows, moments, means) / _deviation(quantized, moments, means)).nan_to_num(1.0, 1.0, 1.0)
    gains = gains.clamp(1 / MOST_GAIN, MOST_GAIN)
    shift = (rows - quantized * gains[..., None]) @ means[:, :, None]
    return gains, shift.flatten()


def _deviation(rows: Tensor, moments: Tensor, means: Tensor) -> Tensor:
    mean = (rows @ means[:, :, None])[..., 0]
    return (((rows @ moments) * rows).sum(dim=2) - mean.square()).clamp(min=0).sqrt()
