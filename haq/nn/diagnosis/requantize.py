"""Rounds weights and operands anew, one layer at a time, so that one cause of harm is undone and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from haq.diagnose.evidence import Range
from haq.nn.calibrate import Operand
from haq.nn.diagnosis.subject import Subject
from haq.nn.diagnosis.weights import SMALLEST_NORMAL
from haq.nn.ptq.ranges import minmax_grid, mse
from haq.nn.quantizers import (
    SMALLEST_SCALE,
    ActivationQuantizer,
    QuantizedWeight,
    affine_parameters,
    largest_code,
)
from haq.nn.tuned import bias_key, part
from haq.precision import Format
from haq.workload import LayerSpec


def to_nearest(weight: Tensor, fmt: Format, channel_axis: int) -> QuantizedWeight:
    """The weight rounded to nearest, each output channel (or group) with the scale of least squared error."""
    moved = weight.detach().float().movedim(channel_axis, 0)
    rows = moved.reshape(1, len(moved), -1)
    grid = mse(rows, None, minmax_grid(rows, int(fmt.largest), fmt.group or rows.shape[2]))
    codes = grid.codes(rows).reshape(moved.shape).movedim(0, channel_axis).contiguous()
    return QuantizedWeight(fmt, codes, grid.scales[0] if fmt.group is not None else grid.scales[0, :, 0], channel_axis)


def with_scales_refitted(stored: QuantizedWeight, exact: Tensor, scale_format: Format) -> QuantizedWeight:
    """The stored weight with fresh scales where its own are below the smallest normal number of their format.

    A fresh scale has the least squared error for the codes as they are, so that whatever rounding chose them is kept; a
    channel whose codes are no help (all zero, or pointing the other way) is rounded to nearest.
    """
    lost = stored.scales < SMALLEST_NORMAL[scale_format.name]
    k = exact.numel() // exact.shape[stored.channel_axis]
    block = stored.format.group or k
    rows, codes = (_blocks(t.detach().float().movedim(stored.channel_axis, 0), block) for t in (exact, stored.codes))
    below = codes.square().sum(dim=2)
    fitted = (rows * codes).sum(dim=2) / below.clamp(min=1.0)
    useless = (fitted <= SMALLEST_SCALE) & (rows.abs().amax(dim=2) > 0)
    nearest = to_nearest(exact, stored.format, stored.channel_axis)
    scales, fresh = (s.reshape(len(rows), -1) for s in (stored.scales, nearest.scales))
    lost = lost.reshape(len(rows), -1)
    made = torch.where(lost, torch.where(useless, fresh, fitted), scales)
    again = (lost & useless).repeat_interleave(block, dim=1)[:, :k]
    own, new = (q.codes.movedim(stored.channel_axis, 0).flatten(1) for q in (stored, nearest))
    shape = stored.codes.movedim(stored.channel_axis, 0).shape
    chosen = torch.where(again, new, own).reshape(shape).movedim(0, stored.channel_axis).contiguous()
    return QuantizedWeight(stored.format, chosen, made.reshape(stored.scales.shape), stored.channel_axis)


def with_weight(subject: Subject, layer: LayerSpec, stored: QuantizedWeight | Tensor) -> Subject:
    """The subject with another weight of that layer."""
    assert layer.weight is not None
    weights = {**subject.numbers.weights, layer.weight.key: stored}
    return subject.with_(numbers=replace(subject.numbers, weights=weights))


def with_bias(subject: Subject, layer: LayerSpec, bias: Tensor) -> Subject:
    """The subject with another bias of that layer, which has one."""
    key = bias_key(subject.model, layer)
    assert key is not None
    return subject.with_(numbers=replace(subject.numbers, biases={**subject.numbers.biases, key: bias}))


def with_bias_of_model(subject: Subject, layer: LayerSpec) -> Subject:
    """The subject with FP32's bias of that layer: a correction belonged to the weight that was replaced."""
    key = bias_key(subject.model, layer)
    return subject if key is None else with_bias(subject, layer, part(subject.model, key))


def with_range(subject: Subject, operand: Operand, to: Range) -> Subject:
    """The subject with another range of an operand, which has a static one."""
    return with_quantizer(subject, operand, quantizer_over(to, subject.numbers.quantizers[operand].format))


def with_quantizer(subject: Subject, operand: Operand, quantizer: ActivationQuantizer) -> Subject:
    """The subject with another quantizer of an operand."""
    quantizers = {**subject.numbers.quantizers, operand: quantizer}
    return subject.with_(numbers=replace(subject.numbers, quantizers=quantizers))


def quantizer_over(covered: Range, fmt: Format) -> ActivationQuantizer:
    """The quantizer that covers a range, widened to hold 0."""
    scale, zero = affine_parameters(np.array([covered[0]]), np.array([covered[1]]), largest_code(fmt))
    return ActivationQuantizer(fmt, float(scale[0]), int(zero[0]))


def _blocks(channels: Tensor, block: int) -> Tensor:
    """(channels, blocks, block), zeros where the last block is short."""
    rows = channels.flatten(1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % block)).reshape(len(rows), -1, block)
