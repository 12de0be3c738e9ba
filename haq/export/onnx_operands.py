"""Writes the change of format in front of a layer: rounding to integers, static or per token, and casts."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from haq.export.onnx_draft import Draft
from haq.export.onnx_values import FLOATS, integers
from haq.nn.calibrate import Operand
from haq.nn.quantizers import SMALLEST_SCALE, ActivationQuantizer
from haq.precision import Format

FLOAT = TensorProto.FLOAT


def operand(draft: Draft, x: str, fmt: Format, name: Operand, quantizer: ActivationQuantizer | None) -> str:
    """The fp32 tensor `x` as a layer reads it in an activation format.

    Layers that read one tensor in the same way share the nodes. ONNX divides by the scale where haq multiplies with its
    rounded inverse, so that a number halfway between two codes may become the other one.
    """
    if quantizer is not None:
        key = ("codes", x, fmt, quantizer.scale, quantizer.zero_point)
        return draft.once(key, lambda: _static(draft, x, name, quantizer))
    if fmt.per_token:
        return draft.once(("token", x, fmt), lambda: _per_token(draft, x, fmt))
    return rounded(draft, x, fmt)


def rounded(draft: Draft, x: str, fmt: Format) -> str:
    """An fp32 tensor in a float format: in its type where there are kernels for it, else rounded and back in fp32."""
    if fmt.name == "fp32":
        return x
    return draft.cast(x, FLOATS[fmt.name], *(() if draft.style.computes(fmt) else (FLOAT,)))


def _static(draft: Draft, x: str, name: Operand, quantizer: ActivationQuantizer) -> str:
    bits, own = quantizer.format.bits, f"{name[0]}:{name[1]}"
    signed = draft.style.signed
    point = quantizer.zero_point - (2 ** (bits - 1) if signed else 0)
    scale = [
        draft.array(f"activation_scale/{own}", np.float32(quantizer.scale)),
        draft.constant(integers(f"activation_zero_point/{own}", np.array(point), bits, signed=signed)),
    ]
    return draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [x, *scale]), *scale])


def _per_token(draft: Draft, x: str, fmt: Format) -> str:
    """As `haq.nn.ptq.per_token`, operation by operation: no quantized operator takes its scale as the network runs."""
    largest = draft.array(f"haq/largest_{fmt}", np.float32(fmt.largest))
    lowest = draft.array(f"haq/lowest_{fmt}", np.float32(-fmt.largest))
    axis = draft.array("haq/last_axis", np.array([-1], np.int64))
    smallest = draft.array("haq/smallest_scale", np.float32(SMALLEST_SCALE))
    range_ = draft.node("ReduceMax", [draft.node("Abs", [x]), axis], keepdims=1)
    scales = draft.node("Max", [draft.node("Div", [range_, largest]), smallest])
    codes = draft.node("Clip", [draft.node("Round", [draft.node("Div", [x, scales])]), lowest, largest])
    return draft.node("Mul", [codes, scales])
