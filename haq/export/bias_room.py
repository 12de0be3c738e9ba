"""How large a weight's scales must be for its layer's bias to fit 32 bits in units of its sums of products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LARGEST_BIAS_CODE = 2**30
"""Above it a bias and the products that it is added to may leave 32 bits."""
SMALLEST_UNIT = 1e-30
"""Products of scales below it may vanish in fp32."""


def scales_with_room(bias: Floats, scales: Floats, operand_scale: float) -> Floats:
    """(channels,) the scales, larger where the bias needs it, as ONNX Runtime's own quantizer does it.

    That happens in channels that are all but dead: weights of 1e-10 beside a bias of 1. Its products are below 2^-15 of
    the bias then (127 x 255 steps of 2^30), so that the codes that such a channel loses were of no effect.
    """
    needed = np.abs(bias) / (LARGEST_BIAS_CODE * operand_scale)
    return np.maximum(scales, np.maximum(needed, SMALLEST_UNIT / operand_scale))
