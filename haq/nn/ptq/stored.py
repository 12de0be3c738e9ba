"""Quantize one layer's weight as a stack of techniques says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.nn.ptq.adaround import adaround
from haq.nn.ptq.bias_correction import lost_mean
from haq.nn.ptq.bn_reestimation import restored
from haq.nn.ptq.coordinate import quantease
from haq.nn.ptq.gptq import gptq
from haq.nn.ptq.grid import Grid
from haq.nn.ptq.ranges import RANGES, minmax_grid
from haq.nn.ptq.statistics import InputStatistics
from haq.nn.quantizers import QuantizedWeight, check_finite
from haq.precision import Format
from haq.techniques import Stack

ROUNDED_BITS = 4
"""Rounding techniques work on weights of at most so many bits: nearest rounding to 8 bits loses nothing to them."""

ROUNDINGS: Mapping[str, Callable[[Tensor, Tensor, Grid], Tensor]] = {
    "gptq": gptq,
    "quantease": quantease,
    "adaround": adaround,
}
"""(rows, second moments, grid) -> codes."""


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A layer's weight in FP32. name: for messages; groups: of a convolution, else 1."""

    name: str
    tensor: Tensor
    channel_axis: int
    groups: int = 1

    @property
    def rows(self) -> Tensor:
        """(groups, rows, k): see `haq.nn.ptq.grid`."""
        by_channel = self.tensor.detach().float().movedim(self.channel_axis, 0)
        return by_channel.reshape(self.groups, len(by_channel) // self.groups, -1)


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer's weight as stored, and what its bias gains: (channels,), or None where nothing is corrected."""

    weight: QuantizedWeight
    shift: Tensor | None = None


@torch.no_grad()
def stored_layer(weight: LayerWeight, fmt: Format, stack: Stack, inputs: InputStatistics | None) -> StoredLayer:
    """The layer's weight in an integer format.

    inputs: what it is multiplied with; without them (an embedding, a transposed convolution) ranges follow the weights
    alone, rounding is to nearest and no output is corrected. Raises InputError on a weight that is not finite.
    """
    check_finite(weight.tensor, weight.name)
    rows = weight.rows
    k = rows.shape[2]
    if inputs is not None and inputs.moments.shape[::2] != rows.shape[::2]:
        inputs = None
    grid = minmax_grid(rows, int(fmt.largest), fmt.group or k)
    grid = RANGES[stack.ranges](rows, None if inputs is None else inputs.moments, grid)
    if inputs is not None and stack.rounding is not None and fmt.bits <= ROUNDED_BITS:
        codes = ROUNDINGS[stack.rounding](rows, inputs.moments, grid)
    else:
        codes = grid.codes(rows)
    grid, shift = _corrected(rows, codes, grid, stack, inputs)
    moved = weight.tensor.movedim(weight.channel_axis, 0)
    shaped = codes.reshape(moved.shape).movedim(0, weight.channel_axis).contiguous()
    scales = grid.scales.reshape(len(moved), -1)
    return StoredLayer(
        QuantizedWeight(fmt, shaped, scales[:, 0] if fmt.group is None else scales, weight.channel_axis), shift
    )


def _corrected(
    rows: Tensor, codes: Tensor, grid: Grid, stack: Stack, inputs: InputStatistics | None
) -> tuple[Grid, Tensor | None]:
    """The grid and the bias's gain after the stack's output correction."""
    if inputs is None or stack.output is None:
        return grid, None
    if stack.output == "bias_correction":
        return grid, lost_mean(rows, grid.values(codes), inputs.means)
    gains, shift = restored(rows, grid.values(codes), inputs.moments, inputs.means)
    return Grid(grid.scales * gains[..., None], grid.largest, grid.block), shift
