"""QuantEase: go over a layer's codes again and again, setting each to what is best given all the others."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.errors import InputError
from haq.nn.ptq.gptq import COLUMNS, gptq
from haq.nn.ptq.grid import Grid, check_layer, damped, live_columns

SWEEPS = 20
"""More than enough: from GPTQ's codes the layers of experiments/accuracy/reconstruction need 4 to about 15."""


@torch.no_grad()
def quantease(
    rows: Tensor, hessian: Tensor, grid: Grid, *, start: Tensor | None = None, sweeps: int = SWEEPS
) -> Tensor:
    """The codes that no change of a single code improves, or those after so many sweeps (Behdin et al. 2023).

    rows: (groups, rows, k). hessian: (groups, k, k). start: codes to begin with, else those of `gptq`. Each step is
    exact: code j becomes the nearest to q_j - g_j / (H_jj scale_j), g the gradient (q - w) H (algorithm 1 there), so
    the error with the `damped` Hessian never grows. A sweep costs about what GPTQ costs without its factorization.

    Raises InputError where shapes disagree or a number is not finite.
    """
    check_layer(rows, hessian)
    start = gptq(rows, hessian, grid) if start is None else start
    if start.shape != rows.shape:
        raise InputError("the codes do not fit the weight", got=tuple(start.shape), expected=str(tuple(rows.shape)))
    codes, live = grid.stored(start).clone(), live_columns(hessian)
    # Transposed, a column of weights lies in one piece of memory.
    weight, scales, current = (
        x[:, :, live].double().mT.contiguous() for x in (rows, grid.expand(rows.shape[2]), codes)
    )
    metric = damped(hessian)[:, live][:, :, live]
    for _ in range(sweeps):
        if not _sweep(weight, scales, metric, current, grid.largest):
            break
    codes[:, :, live] = grid.stored(current.mT)
    return codes


def _sweep(weight: Tensor, scales: Tensor, hessian: Tensor, codes: Tensor, largest: int) -> bool:
    """Update (groups, k, rows) codes in place, first column to last; whether any of them changed."""
    power = hessian.diagonal(dim1=1, dim2=2)
    curvature = torch.where(power > 0, power, 1.0)[:, :, None] * scales  # a group's dead input has no gradient either
    errors, changed = codes * scales - weight, False
    for first in range(0, codes.shape[1], COLUMNS):
        block = slice(first, first + COLUMNS)
        inner = hessian[:, block, block]
        gradient, moved = hessian[:, block] @ errors, torch.zeros_like(errors[:, block])
        for i in range(moved.shape[1]):
            g = gradient[:, i] + (inner[:, i : i + 1, :i] @ moved[:, :i])[:, 0]
            old, step = codes[:, first + i], curvature[:, first + i]
            new = torch.round(old - g / step).clamp_(-largest, largest)
            moved[:, i] = (new - old) * scales[:, first + i]
            codes[:, first + i] = new
        errors[:, block] += moved
        changed = changed or bool(moved.any())
    return changed
