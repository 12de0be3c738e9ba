"""Bias correction: the mean that a layer's output loses to the rounding of its weights goes into its bias."""

from __future__ import annotations

from torch import Tensor


def lost_mean(rows: Tensor, quantized: Tensor, means: Tensor) -> Tensor:
    """(channels,) E[(w - q) x] of every output channel (Nagel et al. 2019, section 4.2, from measured inputs).

    rows, quantized: (groups, rows, k). means: (groups, k) of the inputs.
    """
    return ((rows - quantized) @ means[:, :, None]).flatten()
