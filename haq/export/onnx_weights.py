"""Writes weights and biases as constants, packed integers with scales or floats, and what makes operands of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from haq.export.onnx_draft import Draft
from haq.export.onnx_operands import FLOAT, rounded
from haq.export.onnx_values import floats, integers
from haq.nn.lsq import Stored
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import QuantizedWeight
from haq.precision import Format, Precision

LARGEST_BIAS_CODE = 2**30
"""Above it a bias and the products that it is added to may leave 32 bits."""
SMALLEST_UNIT = 1e-30
"""Products of scales below it may vanish in fp32."""


def weight(draft: Draft, key: str, stored: Stored, precision: Precision) -> str:
    """The weight as its layer multiplies with it, `quantizers.executed_weight`."""
    to = arithmetic(precision)
    if isinstance(stored, QuantizedWeight):
        return rounded(draft, _dequantized(draft, key, stored, precision), to)
    return float_constant(draft, key, stored, precision.weight, to)


def float_constant(draft: Draft, key: str, values: Tensor, fmt: Format, to: Format) -> str:
    """A constant stored in a float format, as an operand of arithmetic in another."""
    name = draft.constant(floats(key, values, fmt))
    if fmt == to:
        return name if draft.style.computes(fmt) else draft.cast(name, FLOAT)
    return rounded(draft, name if fmt.name == "fp32" else draft.cast(name, FLOAT), to)


def bias(draft: Draft, key: str, values: Tensor, precision: Precision) -> str:
    """A bias in its layer's arithmetic."""
    to = arithmetic(precision)
    return float_constant(draft, key, values, to, to)


def integer_bias(draft: Draft, key: str, values: Tensor, weight: tuple[str, QuantizedWeight], scale: float) -> str:
    """A bias as int32 in units of its layer's sums of products.

    weight: its layer's, with its key, after `with_room_for`. scale: of the layer's operand. The unit of a channel is
    scale of weight x scale of operand (Jacob et al. 2018, section 2.4): rounding to it loses at most half of it.
    """
    unit = weight[1].scales.numpy() * np.float32(scale)
    codes = np.rint(values.detach().double().numpy() / unit.astype(np.float64)).astype(np.int32)
    scales = draft.array(f"scales/{weight[0]}", weight[1].scales.numpy())
    one, stored = draft.array(f"bias_unit/{key}", np.float32(scale)), draft.constant(integers(key, codes, 32))
    # The units are computed, not stored: the runtime folds them, and they would double the bias.
    return draft.node("DequantizeLinear", [stored, draft.node("Mul", [scales, one])], axis=0)


def with_room_for(values: Tensor, weight: QuantizedWeight, scale: float) -> QuantizedWeight:
    """The weight with larger scales where the bias would not fit 32 bits, as ONNX Runtime's own quantizer does it.

    That happens in channels that are all but dead: weights of 1e-10 beside a bias of 1 get a code of zero then, and
    larger ones fewer codes. Half of the new step times an 8-bit operand is at most 255 / 2^31 of the bias, its last
    digit in fp32: nothing is lost that the simulation has. `haq.verify.numbers` holds the file to that.
    """
    needed = np.abs(values.detach().double().numpy()) / (LARGEST_BIAS_CODE * scale)
    needed = np.maximum(needed, SMALLEST_UNIT / scale)
    before = weight.scales.double().numpy()
    if bool(np.all(before >= needed)):
        return weight
    scales = torch.from_numpy(np.maximum(before, needed)).float()
    share = torch.from_numpy(before).div(scales.double()).reshape(-1, *[1] * (weight.codes.dim() - 1))
    codes = torch.where(share == 1, weight.codes.double(), torch.round(weight.codes.double() * share))
    return replace(weight, codes=codes.to(weight.codes.dtype), scales=scales)


def looked_up(draft: Draft, key: str, stored: QuantizedWeight, ids: str, precision: Precision) -> str:
    """Rows of a table of 8-bit codes, dequantized after they were found, so that the table is never unpacked."""
    codes = draft.constant(integers(key, stored.codes.numpy(), stored.format.bits))
    scales = draft.array(f"scales/{key}", stored.scales.numpy())
    rows = draft.cast(draft.node("Gather", [codes, ids], axis=0), FLOAT)
    last = draft.array("haq/last_axis", np.array([-1], np.int64))
    by_row = draft.node("Unsqueeze", [draft.node("Gather", [scales, ids], axis=0), last])
    return rounded(draft, draft.node("Mul", [rows, by_row]), arithmetic(precision))


def _dequantized(draft: Draft, key: str, stored: QuantizedWeight, precision: Precision) -> str:
    """The weight in fp32: code x scale."""
    if stored.format.group is not None:
        return _dequantized_groups(draft, key, stored)
    bits, axis = stored.format.bits, stored.channel_axis
    codes = draft.constant(integers(key, stored.codes.numpy(), bits))
    scales = draft.array(f"scales/{key}", stored.scales.numpy())
    if draft.style.integer_kernels and bits == 4 and multiplies_integers(precision):
        # The runtime folds the cast as it loads the file, and has kernels for 8-bit weights only.
        codes, bits = draft.cast(codes, TensorProto.INT8), 8
    points = [_zeros(draft, key, bits, len(stored.scales))] if bits > 4 else []
    return draft.node("DequantizeLinear", [codes, scales, *points], axis=axis)


def _dequantized_groups(draft: Draft, key: str, stored: QuantizedWeight) -> str:
    """Blocks lie along one axis of a constant: (channels, elements of one), which then takes the weight's shape."""
    assert stored.format.group is not None
    size, axis = stored.format.group, stored.channel_axis
    codes, scales = stored.codes.numpy(), stored.scales.numpy()
    if codes.ndim == 2:
        name = draft.constant(integers(key, codes, stored.format.bits))
        by_block = draft.array(f"scales/{key}", scales if axis == 0 else np.ascontiguousarray(scales.T))
        return draft.node("DequantizeLinear", [name, by_block], axis=1 - axis, block_size=size)
    moved = np.moveaxis(codes, axis, 0)
    name = draft.constant(integers(key, moved.reshape(len(moved), -1), stored.format.bits))
    rows = draft.node("DequantizeLinear", [name, draft.array(f"scales/{key}", scales)], axis=1, block_size=size)
    shaped = draft.node("Reshape", [rows, draft.array(f"haq/shape/{key}", np.array(moved.shape, np.int64))])
    order = list(range(1, codes.ndim))
    order.insert(axis, 0)
    return shaped if axis == 0 else draft.node("Transpose", [shaped], perm=order)


def multiplies_integers(precision: Precision) -> bool:
    """Whether the layer multiplies 8-bit integers (or 4-bit ones as such) with one scale per channel and operand."""
    weight, activation = precision.weight, precision.activation
    plain = weight.group is None and not activation.per_token
    return plain and weight.is_integer and activation.is_integer and weight.bits <= 8 and activation.bits == 8


def _zeros(draft: Draft, key: str, bits: int, count: int) -> str:
    """Zero-points of a symmetric weight. ONNX Runtime adds a single one where there are none, and then refuses it; and
    it rewrites them in place, so that no two weights may share theirs."""
    return draft.constant(integers(f"zero_points/{key}", np.zeros(count, np.int32), bits))
