"""GPTQ: round a weight column by column, each column making up for the errors of those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.errors import InputError
from haq.nn.ptq.grid import DAMPING, Grid, check_layer, live_columns

COLUMNS = 128
"""Columns whose corrections are made one by one; those to all later columns are one matrix product per 128."""


@torch.no_grad()
def gptq(rows: Tensor, hessian: Tensor, grid: Grid, *, damping: float = DAMPING, act_order: bool = True) -> Tensor:
    """The codes that GPTQ rounds a layer to (Frantar et al. 2022), with the grid fixed beforehand.

    rows: (groups, rows, k). hessian: (groups, k, k), the mean of x xᵀ. damping: what is added to the Hessian's
    diagonal, as a share of its mean; raised group by group until the Hessian is positive definite. act_order: round
    the columns with the largest inputs first. Group-wise scales stay with their columns ("static groups").
    An input that was always 0 has its weights rounded to nearest, not to 0: other data may use it.

    The paper takes the Cholesky factor of the inverse Hessian. This takes H = U D Uᵀ, U unit upper triangular, which
    gives the same codes with no inverse (Chee et al. 2023, "QuIP", theorem 6): column i is the rounding of
    w_i + sum_{j < i} (w_j - q_j) U_ji. fp64 throughout. Raises InputError where shapes disagree, a number is not
    finite or the damping is negative.
    """
    check_layer(rows, hessian)
    if not damping >= 0:
        raise InputError("GPTQ cannot use this damping", got=damping, expected="a share >= 0")
    codes, live = grid.codes(rows), live_columns(hessian)
    weight, scales = rows[:, :, live].double(), grid.expand(rows.shape[2])[:, :, live].double()
    alive = _without_dead_inputs(hessian.double()[:, live][:, :, live])
    power = alive.diagonal(dim1=1, dim2=2)
    order = torch.argsort(power, dim=1, descending=True, stable=True) if act_order else None
    if order is not None:
        weight, scales, alive = _columns(weight, order), _columns(scales, order), _both_sides(alive, order)
    rounded = _round_in_turn(weight, scales, unit_upper(alive, damping), grid.largest)
    codes[:, :, live] = grid.stored(rounded if order is None else _columns(rounded, torch.argsort(order, dim=1)))
    return codes


def unit_upper(hessian: Tensor, damping: float) -> Tensor:
    """(groups, k, k) U of H + damping = U D Uᵀ, U unit upper triangular; the damping grows tenfold where it must."""
    mean = hessian.diagonal(dim1=1, dim2=2).mean(dim=1)
    factor = torch.empty_like(hessian)
    pending = torch.arange(len(hessian), device=hessian.device)
    while len(pending):
        damped = hessian[pending].flip(1, 2)
        damped.diagonal(dim1=1, dim2=2).add_(damping * mean[pending, None])
        # The flipped matrix's lower factor is the upper factor of the matrix itself.
        lower, failed = torch.linalg.cholesky_ex(damped)
        sound = failed == 0
        factor[pending[sound]] = lower[sound].flip(1, 2)
        pending, damping = pending[~sound], max(10 * damping, 1e-10)
    return factor.div_(factor.diagonal(dim1=1, dim2=2)[:, None, :].clone())


def _without_dead_inputs(hessian: Tensor) -> Tensor:
    """A copy in which inputs that were always 0 have the mean variance of the others (1 where all were 0)."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    mean = diagonal.clamp(min=0).sum(dim=1) / (~dead).sum(dim=1).clamp(min=1)
    filled = torch.where(mean > 0, mean, 1.0)[:, None].expand_as(diagonal)
    alive = hessian.clone()
    alive.diagonal(dim1=1, dim2=2).copy_(torch.where(dead, filled, diagonal))
    return alive


def _round_in_turn(weight: Tensor, scales: Tensor, upper: Tensor, largest: int) -> Tensor:
    """(groups, rows, k) codes, as floats: the columns from first to last, corrected block by block ("lazy updates")."""
    # Transposed, a column of weights lies in one piece of memory.
    weight, scales, factors = weight.mT.contiguous(), scales.mT.contiguous(), upper.mT.contiguous()
    codes, errors = torch.empty_like(weight), torch.empty_like(weight)
    k = weight.shape[1]
    for start in range(0, k, COLUMNS):
        end = min(start + COLUMNS, k)
        target = weight[:, start:end] + factors[:, start:end, :start] @ errors[:, :start]
        for i in range(start, end):
            wanted = target[:, i - start] + (factors[:, i : i + 1, start:i] @ errors[:, start:i])[:, 0]
            codes[:, i] = torch.round(wanted / scales[:, i]).clamp_(-largest, largest)
            errors[:, i] = weight[:, i] - codes[:, i] * scales[:, i]
    return codes.mT


def _columns(x: Tensor, order: Tensor) -> Tensor:
    """The columns of each group of `x` in the group's own order; order: (groups, k)."""
    return x.gather(2, order[:, None, :].expand_as(x))


def _both_sides(hessian: Tensor, order: Tensor) -> Tensor:
    return _columns(hessian.gather(1, order[:, :, None].expand_as(hessian)), order)
