"""Dynamic activation quantization: every token takes its scale from its own largest value as the network runs."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.nn.quantizers import SMALLEST_SCALE
from haq.precision import Format


def round_per_token(x: Tensor, fmt: Format) -> Tensor:
    """`x` rounded symmetrically to codes -largest ... largest with one scale per row of its last axis.

    scale = max |row| / largest (Yao et al. 2022, "ZeroQuant", section 4.1). NaN stays NaN; a row with an infinity has
    no finite scale and becomes NaN, as it does on a device.
    """
    scales = (x.abs().amax(dim=-1, keepdim=True) / fmt.largest).clamp(min=SMALLEST_SCALE)
    return torch.round(x / scales).clamp_(-fmt.largest, fmt.largest).mul_(scales)
