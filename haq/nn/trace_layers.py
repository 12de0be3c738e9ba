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


def weight_spec(op: str, args: tuple[Any, ...], site: Site) -> WeightSpec | None:
    """The weight as it is stored, with its output-channel axis; None for an attention product."""
    if site.weight is None or site.key is None:
        return None
    weight: Tensor = args[site.weight]
    if op == "aten.embedding":
        return WeightSpec(site.key, tuple(weight.shape), 0)
    if op == "aten.convolution":
        return WeightSpec(site.key, tuple(weight.shape), 1 if args[6] else 0)
    if weight.dim() != 2:
        # A batch of weights (an expert each, say): no single channel axis but the last one.
        return WeightSpec(site.key, tuple(weight.shape), weight.dim() - 1)
    rows_are_outputs = site.weight == OPERANDS[op][0]
    stored_as_seen = weight.stride(1) == 1 or weight.stride(0) != 1
    shape = tuple(weight.shape) if stored_as_seen else tuple(reversed(weight.shape))
    return WeightSpec(site.key, shape, 0 if rows_are_outputs == stored_as_seen else 1)


def gemm(op: str, args: tuple[Any, ...], output: Tensor) -> Gemm | None:
    """The call as matrix products per sample; None for a look-up.

    A convolution is im2col: m output positions, n = output channels of a group, k = inputs of one output. A transposed
    one multiplies every input position by out_channels / groups x kernel columns.
    """
    if op == "aten.embedding":
        return None
    if op == "aten.convolution":
        x, weight, groups = args[0], args[1], args[8]
        kernel = math.prod(weight.shape[2:])
        if args[6]:
            return Gemm(math.prod(x.shape[2:]), weight.shape[1] * kernel, weight.shape[0] // groups, groups)
        return Gemm(math.prod(output.shape[2:]), weight.shape[0] // groups, weight.shape[1] * kernel, groups)
    first, second = (args[i] for i in OPERANDS[op])
    if op == "aten.dot":
        return Gemm(1, 1, first.shape[0], 1)
    if op in ("aten.mv", "aten.addmv"):
        return Gemm(first.shape[0], 1, first.shape[1], 1)
    if first.dim() == 3:
        return Gemm(first.shape[1], second.shape[2], first.shape[2], first.shape[0])
    return Gemm(first.shape[0], second.shape[1], first.shape[1], 1)
