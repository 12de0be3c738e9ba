"""A layer's stored weight beside its FP32 one: what the rounding costs, and what better scales would."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.diagnose.evidence import WeightEvidence
from haq.nn.diagnosis.decibel import decibel, power
from haq.nn.diagnosis.magnitudes import Magnitudes, counted
from haq.nn.diagnosis.subject import Subject
from haq.nn.ptq.grid import Grid
from haq.nn.ptq.ranges import minmax_grid
from haq.nn.quantizers import QuantizedWeight, executed_weight, largest_by_channel
from haq.nn.tuned import part
from haq.precision import Format
from haq.workload import LayerSpec

SHARES = (0.92, 0.84, 0.74, 0.62, 0.5)
"""Of the largest magnitude: where a channel's clipping is tried, beside 1."""
SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126, "fp32": 2.0**-126}
"""IEEE 754: numbers below have fewer digits, and many devices flush them to zero."""


def weight_evidence(subject: Subject, layer: LayerSpec) -> WeightEvidence:
    """What is stored of a layer's weight; the layer has one."""
    assert layer.weight is not None
    axis = layer.weight.channel_axis
    precision, stored = subject.executed.precision(layer.name), subject.numbers.weights[layer.weight.key]
    exact = part(subject.model, layer.weight.key)
    in_use = executed_weight(stored, precision)
    rows = exact.movedim(axis, 0).flatten(1)
    largest = largest_by_channel(exact, axis)
    signal = power(exact)
    wrong = power(in_use - exact)
    best = tensor = sqnr = decibel(signal, wrong)
    scales = torch.zeros(0)
    if isinstance(stored, QuantizedWeight):
        best = max(sqnr, decibel(signal, _least_error(rows, stored.format)))
        tensor = decibel(signal, _tensor_error(exact, stored.format))
        scales = stored.scales if stored.scales.dim() == 1 else stored.scales.amax(dim=1)
    gain = _gain(rows, in_use.movedim(axis, 0).flatten(1))
    alive = largest > 0
    lost = alive & (scales < SMALLEST_NORMAL[subject.scale_format.name]) if len(scales) else alive & _gone(in_use, axis)
    return WeightEvidence(
        layer=layer.name,
        format=precision.weight,
        sqnr_db=sqnr,
        best_sqnr_db=best,
        tensor_sqnr_db=tensor,
        scales=scales.double().cpu().numpy(),
        channel_largest=largest.double().cpu().numpy(),
        scale_format=subject.scale_format,
        lost_channels=tuple(torch.nonzero(lost)[:, 0].tolist()),
        dead_channels=tuple(torch.nonzero(~alive)[:, 0].tolist()),
        gain=gain.double().cpu().numpy(),
        gain_share=power(rows * (gain - 1)[:, None]) / wrong if wrong > 0 else 0.0,
    )


def _gain(exact: Tensor, in_use: Tensor) -> Tensor:
    """(channels,) the factor with the least squared error from (channels, k) to (channels, k); 1 where all are zero."""
    below = exact.square().sum(dim=1)
    return torch.where(below > 0, (exact * in_use).sum(dim=1) / below.clamp(min=1e-38), 1.0)


def _gone(in_use: Tensor, axis: int) -> Tensor:
    """(channels,) whether all of a channel became zero."""
    return largest_by_channel(in_use, axis) == 0


def _least_error(rows: Tensor, fmt: Format) -> float:
    """Summed squared error of rounding (channels, k) rows to nearest with the best of the tried scales per channel."""
    three = rows[None].float()
    widest = minmax_grid(three, int(fmt.largest), fmt.group or rows.shape[1])
    least = _errors(three, widest)
    for share in SHARES:
        least = torch.minimum(least, _errors(three, Grid(widest.scales * share, widest.largest, widest.block)))
    return float(least.sum())


def _errors(rows: Tensor, grid: Grid) -> Tensor:
    """(1, channels, blocks) summed squared errors."""
    scales = grid.scales[0, :, :, None]
    count, k = rows.shape[1:]
    blocks = torch.nn.functional.pad(rows[0], (0, -k % grid.block)).reshape(count, -1, grid.block)
    wrong = (blocks / scales).round_().clamp_(-grid.largest, grid.largest).mul_(scales).sub_(blocks)
    return wrong.square_().sum(dim=2)[None]


def _tensor_error(weight: Tensor, fmt: Format) -> float:
    """Summed squared error with the best one scale for all."""
    levels = 2 * int(fmt.largest)
    held = Magnitudes.of(counted(weight))
    largest = float(weight.abs().amax())
    low, high = held.best_range((-largest, largest), levels)
    return held.error(low, high, levels)
