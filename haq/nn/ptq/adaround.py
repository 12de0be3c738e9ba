"""AdaRound: learn for every weight whether to round it up or down, on the exact error of the layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.errors import InputError
from haq.nn.ptq.coordinate import quantease
from haq.nn.ptq.grid import Grid, check_layer, damped, live_columns, reconstruction_error

ZETA, GAMMA = 1.1, -0.1
"""The ends that the sigmoid is stretched to before it is cut to 0 ... 1 (the paper's equation 23)."""
BETA_FIRST, BETA_LAST, WARM_UP = 20.0, 2.0, 0.2
STEPS, RATE, PULL = 500, 0.1, 10.0
"""Steps, Adam's rate and lambda, chosen on five layers of three networks at 4 bits: 500 steps take 2 to 9 % off the
error that QuantEase leaves, 100 steps 0 to 7 %, and 1000 steps 0.3 to 2.4 % more than 500. With a tenth of the lambda
up to a quarter of the weights are undecided at the end."""
SMALLEST = 1e-300
CONFIDENCE = 0.9
"""How far the first h leans towards the codes it starts from."""


@torch.no_grad()
def adaround(rows: Tensor, hessian: Tensor, grid: Grid, *, steps: int = STEPS, start: Tensor | None = None) -> Tensor:
    """The codes that AdaRound chooses (Nagel et al. 2020), polished; no row is worse than rounded to nearest.

    rows: (groups, rows, k). hessian: (groups, k, k). start: codes to begin with, else GPTQ's; `quantease` polishes them
    first. With the same steps that is 0.4 to 23 % better than the paper's start at the fractions of w / scale.

    As in the paper: code = base + h(v), h the rectified sigmoid, and a term lambda * sum(1 - |2h - 1|^beta), beta
    annealed from 20 to 2 after a warm-up of 20 %. Other than there, the loss is not sampled: (q - w) H (q - w)ᵀ is the
    squared output error over all calibration inputs at once and 2 (q - w) H its gradient, so the result is
    deterministic and a step costs rows * k², however many inputs there were. Each row's loss is taken relative to that
    of nearest rounding, per weight, which makes one lambda fit all layers. The Hessian is
    `damped`. Last come the sweeps of `quantease`, and each row keeps what was learned only where that beats the start.

    Raises InputError where shapes disagree, a number is not finite or there are no steps.
    """
    check_layer(rows, hessian)
    if steps < 1:
        raise InputError("AdaRound cannot learn without steps", got=steps, expected="steps >= 1")
    nearest, live = grid.codes(rows), live_columns(hessian)
    if not len(live):
        return nearest
    start = quantease(rows, hessian, grid, start=start)
    learned = start.clone()
    scales = grid.expand(rows.shape[2])[:, :, live].double()
    choice = _choice(rows[:, :, live].double() / scales, start[:, :, live], grid.largest)
    noisy = damped(hessian)
    gain = _gain(choice.target - nearest[:, :, live], scales, noisy[:, live][:, :, live])
    learned[:, :, live] = grid.stored(choice.base + _learn(choice, *gain, steps))
    polished = quantease(rows, hessian, grid, start=learned)
    # First by what was minimized; what that did to the error itself must still be better than nothing.
    best = _better_per_row(rows, noisy, grid, start, polished)
    return _better_per_row(rows, hessian, grid, nearest, best)


@dataclass(frozen=True, eq=False)
class _Choice:
    """Every code is base or base + 1. target: the weights in steps of their scales. first: the h to begin with."""

    base: Tensor
    target: Tensor
    first: Tensor


def _choice(target: Tensor, start: Tensor, largest: int) -> _Choice:
    """Between the code of `start` and its neighbour on the weight's side."""
    base = torch.where(start > target, start - 1, start).clamp(-largest, largest - 1).double()
    return _Choice(base, target, torch.where(start > base, CONFIDENCE, 1 - CONFIDENCE).double())


def _gain(nearest_errors: Tensor, scales: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (groups, rows, k) and a Hessian with which (d * factors) H (d * factors)ᵀ of nearest rounding is k.

    A row that nearest rounding hits exactly keeps factors that are at most 1.
    """
    metric = hessian / hessian.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=SMALLEST)[:, None, None]
    relative = scales / scales.amax(dim=2, keepdim=True)
    errors = nearest_errors * relative
    loss = ((errors @ metric) * errors).mean(dim=2, keepdim=True)
    return relative / torch.where(loss > 1e-12, loss, 1.0).sqrt(), metric


def _learn(choice: _Choice, gain: Tensor, hessian: Tensor, steps: int) -> Tensor:
    """(groups, rows, k) h in {0, 1} after Adam (Kingma & Ba 2015) in fp32, whose accuracy the rounding needs not."""
    offset, gain, hessian = (choice.base - choice.target).float(), gain.float(), hessian.float()
    v = -torch.log((ZETA - GAMMA) / (choice.first.float() - GAMMA) - 1)
    mean, square = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(1, steps + 1):
        sigmoid = torch.sigmoid(v)
        stretched = sigmoid * (ZETA - GAMMA) + GAMMA
        h = stretched.clamp(0, 1)
        slope = ((offset + h).mul_(gain) @ hessian).mul_(2 * gain) - PULL * _pull(h, step / steps)
        slope *= sigmoid * (1 - sigmoid) * (ZETA - GAMMA) * (stretched == h)
        mean.lerp_(slope, 0.1)
        square.lerp_(slope.square(), 0.001)
        scale = (square / (1 - 0.999**step)).sqrt_().add_(1e-12)
        v -= mean.div(scale).mul_(RATE / (1 - 0.9**step))
    return (v >= 0).double()  # the sigmoid's half is h = 1/2


def _pull(h: Tensor, progress: float) -> Tensor:
    """-d/dh of 1 - |2h - 1|^beta, away from 1/2; beta falls by a cosine after the warm-up, in which there is none."""
    if progress < WARM_UP:
        return torch.zeros_like(h)
    share = (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2
    beta = BETA_LAST + (BETA_FIRST - BETA_LAST) * share
    z = 2 * h - 1
    # Below 0.02 the power is nothing; left alone it becomes subnormal, on which a CPU is a hundred times slower.
    return 2 * beta * z.abs().clamp_(min=0.02).pow_(beta - 1).mul_(z.sign())


def _better_per_row(rows: Tensor, hessian: Tensor, grid: Grid, first: Tensor, second: Tensor) -> Tensor:
    """The second codes in the rows where their error is less, else the first."""
    errors = [reconstruction_error(rows, grid.values(codes), hessian) for codes in (first, second)]
    return torch.where((errors[1] < errors[0])[:, :, None], second, first)
