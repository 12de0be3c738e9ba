"""Shapes of one multiplying aten call: its kind, its weight, its matrix products; pure functions of its arguments."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from haq.nn.sites import OPERANDS, Site
from haq.workload import Gemm, WeightSpec


def layer_kind(op: str, args: tuple[Any, ...], site: Site) -> str:
    """One of LAYER_KINDS."""
    if op == "aten.embedding":
        return "embedding"
    if op == "aten.convolution":
        return f"{'conv_transpose' if args[6] else 'conv'}{args[0].dim() - 2}d"
    return "matmul" if site.weight is None else "linear"


def weight_spec(op: str, args: tuple[Any, ...], site: Site, parameter: Tensor | None) -> WeightSpec | None:
    """The weight as it is stored in `parameter`, with its output-channel axis; None for an attention product."""
    if site.weight is None or site.key is None or parameter is None:
        return None
    weight: Tensor = args[site.weight]
    if op == "aten.embedding":
        return WeightSpec(site.key, tuple(weight.shape), 0)
    if op == "aten.convolution":
        return WeightSpec(site.key, tuple(weight.shape), 1 if args[6] else 0)
    while weight.dim() > 2 and (weight.stride(0) == 0 or weight.shape[0] == 1):
        weight = weight[0]  # one weight, expanded over the batch
    if weight.dim() != 2 or parameter.dim() != 2:
        # A batch of weights (an expert each, say) or a vector: no single channel axis but the last one.
        return WeightSpec(site.key, tuple(weight.shape), weight.dim() - 1)
    outputs = 0 if site.weight == OPERANDS[op][0] else 1
    axis = _axis_in(parameter, weight.shape[outputs], weight.stride(outputs))
    shape = tuple(weight.shape) if axis == outputs else tuple(reversed(weight.shape))
    return WeightSpec(site.key, shape, axis)


def _axis_in(parameter: Tensor, size: int, stride: int) -> int:
    """Which axis of a stored matrix an axis of (part of) its view is: that with its stride; its size breaks a tie."""
    axes = [axis for axis in (0, 1) if parameter.stride(axis) == stride] or [0, 1]
    return next((axis for axis in axes if parameter.shape[axis] == size), axes[0])


def channels(op: str, site: Site, output: Tensor) -> tuple[int, int] | None:
    """Size and stride of the output's channel axis, so that a reader of the same memory can be seen to keep it."""
    if op == "aten.convolution":
        return output.shape[1], output.stride(1)
    if site.weight == OPERANDS[op][1] and op in ("aten.mm", "aten.addmm", "aten.bmm"):
        return output.shape[-1], output.stride(-1)
    return None


def gemm(op: str, args: tuple[Any, ...], output: Tensor) -> Gemm | None:
    """The call as matrix products per sample; None for a look-up.

    A convolution is im2col: m output positions, n = output channels of a group, k = inputs of one output. A transposed
    one multiplies every input position by out_channels / groups x kernel columns. Time or views that the network folded
    into the batch are positions too.
    """
    if op == "aten.embedding":
        return None
    if op == "aten.convolution":
        x, weight, groups = args[0], args[1], args[8]
        kernel = math.prod(weight.shape[2:])
        if args[6]:
            positions = x.shape[0] * math.prod(x.shape[2:])
            return Gemm(positions, weight.shape[1] * kernel, weight.shape[0] // groups, groups)
        positions = output.shape[0] * math.prod(output.shape[2:])
        return Gemm(positions, weight.shape[0] // groups, weight.shape[1] * kernel, groups)
    first, second = (args[i] for i in OPERANDS[op])
    if op == "aten.dot":
        return Gemm(1, 1, first.shape[0], 1)
    if op in ("aten.mv", "aten.addmv"):
        return Gemm(first.shape[0], 1, first.shape[1], 1)
    if first.dim() == 3:
        return Gemm(first.shape[1], second.shape[2], first.shape[2], first.shape[0])
    return Gemm(first.shape[0], second.shape[1], first.shape[1], 1)
