"""HQQ: fit the scales of a weight grid without data, so that few weights are far off rather than all a little."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from haq.errors import InputError
from haq.nn.ptq.grid import Grid

BETA, GROWTH = 10.0, 1.01
"""The penalty between the two quadratic halves, in steps of the first scale, and its growth per step."""


@torch.no_grad()
def hqq(rows: Tensor, grid: Grid, *, p: float = 0.7, steps: int = 20) -> Grid:
    """The grid with scales of less |w - q|^p, summed over each block; no block's is worse than before.

    rows: (groups, rows, k). p: in (0, 1]. The half-quadratic scheme of Badri & Shaji 2023 ("HQQ"):
    min over s, codes q and an error e that stands for the few large ones of |e|^p + beta / 2 (w - s q - e)². Each step

        e = shrink(w - s q),  shrink(x) = sign(x) max(|x| - |x|^(p - 1) / beta, 0)      (their equation 3)
        s = sum(q (w - e)) / sum(q²)                                                    (in place of equation 5)
        q = the nearest codes,  beta = beta * 1.01

    The original holds s and solves its second line for the zero-point, as a mean; a symmetric grid has none, so the
    same least squares is solved for the scale. beta counts in steps of the first scale, so the result does not depend
    on the size of the weights. Of the scales met, each block keeps the best.

    Raises InputError on a p outside (0, 1], no steps, or scales that do not fit.
    """
    if not 0 < p <= 1 or steps < 1:
        raise InputError("HQQ cannot run so", got=f"p {p}, steps {steps}", expected="0 < p <= 1, steps >= 1")
    first = grid.expand(rows.shape[2]).double()
    weight = _blocks(rows.double() / first, grid.block)
    scale = best = torch.ones_like(weight[..., :1])
    codes = _nearest(weight, scale, grid.largest)
    least = _lp(weight - codes, p)
    for step in range(steps):
        error = weight - scale * codes
        size = error.abs()
        large = error.sign() * (size - size.clamp(min=1e-12) ** (p - 1) / (BETA * GROWTH**step)).clamp(min=0)
        power = codes.square().sum(dim=-1, keepdim=True)
        fitted = (codes * (weight - large)).sum(dim=-1, keepdim=True) / power.clamp(min=1)
        scale = torch.where(fitted > 0, fitted, scale)
        codes = _nearest(weight, scale, grid.largest)
        loss = _lp(weight - scale * codes, p)
        best = torch.where(loss < least, scale, best)
        least = torch.minimum(loss, least)
    return replace(grid, scales=(grid.scales.double() * best[..., 0]).to(grid.scales.dtype))


def _blocks(x: Tensor, block: int) -> Tensor:
    """(groups, rows, blocks, block) of (groups, rows, k), with zeros after the last column: they are exact codes."""
    return pad(x, (0, -x.shape[2] % block)).reshape(*x.shape[:2], -1, block)


def _nearest(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    return torch.round(weight / scale).clamp_(-largest, largest)


def _lp(error: Tensor, p: float) -> Tensor:
    return error.abs().pow(p).sum(dim=-1, keepdim=True)
