"""Choose how far a weight's grid reaches: the scales of every output channel, or of every block of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from haq.nn.ptq.grid import Grid
from haq.nn.ptq.hqq import hqq
from haq.nn.ptq.mse import squared_error
from haq.nn.ptq.output_mse import output_error
from haq.nn.quantizers import SMALLEST_SCALE

Error = Callable[[Tensor], Tensor]
"""(groups, rows, k) rounding errors -> (groups, rows) what they cost."""

COARSE = torch.linspace(1.0, 0.25, 16)
FINE = torch.linspace(0.04, -0.04, 9)
"""Shares of the largest magnitude that are tried: all of COARSE, then those around the best one."""


def minmax(rows: Tensor, moments: Tensor | None, grid: Grid) -> Grid:
    """Everything is covered: the grid as it comes."""
    return grid


def mse(rows: Tensor, moments: Tensor | None, grid: Grid) -> Grid:
    """The scales with the least squared error of the weights."""
    return _searched(rows, grid, lambda weights, block: squared_error)


def output_mse(rows: Tensor, moments: Tensor | None, grid: Grid) -> Grid:
    """The scales with the least squared error of the layer's output; of the weights where inputs are not known."""
    if moments is None:
        return mse(rows, moments, grid)
    return _searched(rows, grid, lambda weights, block: output_error(_diagonal_blocks(moments, block)))


def by_hqq(rows: Tensor, moments: Tensor | None, grid: Grid) -> Grid:
    """The scales of half-quadratic splitting."""
    return hqq(rows, grid)


RANGES: Mapping[str, Callable[[Tensor, Tensor | None, Grid], Grid]] = {
    "minmax": minmax,
    "mse": mse,
    "output_mse": output_mse,
    "hqq": by_hqq,
}
"""(rows, second moments of the inputs or None, the min-max grid) -> the grid."""


def minmax_grid(rows: Tensor, largest: int, block: int) -> Grid:
    """The grid that reaches to the largest magnitude of every row and block. block: columns that share a scale.

    A block of zeros gets scale 1.
    """
    reach = _blocks(rows, block).abs().amax(dim=3)
    scales = torch.where(reach > 0, (reach / largest).clamp(min=SMALLEST_SCALE), torch.ones_like(reach))
    return Grid(scales, largest, block)


def _searched(rows: Tensor, grid: Grid, error_of: Callable[[Tensor, int], Error]) -> Grid:
    """The grid with each scale a share of its min-max scale, chosen on a coarse and then a fine set of shares.

    A block is judged alone, as if those beside it were exact. Of equally good shares the largest wins.
    """
    groups, count, blocks = grid.scales.shape
    weights = _blocks(rows, grid.block).permute(0, 2, 1, 3).reshape(groups * blocks, count, -1)
    reach = grid.scales.permute(0, 2, 1).reshape(groups * blocks, count)
    error = error_of(weights, grid.block)
    share = _best(weights, reach, COARSE.to(rows).expand(*reach.shape, -1), grid.largest, error)
    share = _best(weights, reach, (share[..., None] + FINE.to(rows)).clamp(max=1.0), grid.largest, error)
    scales = (reach * share).clamp(min=SMALLEST_SCALE).reshape(groups, blocks, count).permute(0, 2, 1)
    return Grid(scales.contiguous(), grid.largest, grid.block)


def _best(weights: Tensor, reach: Tensor, shares: Tensor, largest: int, error: Error) -> Tensor:
    """(groups, rows) the share with the least error."""
    best, least = shares[..., 0], torch.full_like(reach, torch.inf)
    for share in shares.unbind(dim=-1):
        scale = (reach * share).clamp(min=SMALLEST_SCALE)[..., None]
        cost = error(torch.round(weights / scale).clamp_(-largest, largest).mul_(scale).sub_(weights))
        better = cost < least
        best, least = torch.where(better, share, best), torch.where(better, cost, least)
    return best


def _blocks(rows: Tensor, block: int) -> Tensor:
    """(groups, rows, blocks, block), zeros where the last block is short."""
    groups, count, k = rows.shape
    short = -k % block
    return torch.nn.functional.pad(rows, (0, short)).reshape(groups, count, -1, block)


def _diagonal_blocks(moments: Tensor, block: int) -> Tensor:
    """(groups x blocks, block, block) the second moments within each block."""
    groups, k, _ = moments.shape
    short = -k % block
    padded = torch.nn.functional.pad(moments, (0, short, 0, short))
    blocks = padded.reshape(groups, -1, block, padded.shape[2] // block, block)
    return blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, block, block)
