"""Constants of an ONNX file: packed integers, 16-bit floats, and the graph with only what it needs."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from haq.precision import Format

OPSET, IR = 21, 10
"""The oldest with 4- and 16-bit quantization, and the intermediate representation that came with it."""
DOMAIN = "haq"

SIGNED = {4: TensorProto.INT4, 8: TensorProto.INT8, 16: TensorProto.INT16, 32: TensorProto.INT32}
UNSIGNED = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_STORED = {4: np.int8, 8: np.int8, 16: np.int16, 32: np.int32}


def integers(name: str, values: NDArray[np.integer], bits: int, *, signed: bool = True) -> TensorProto:
    """A constant of 4-, 8-, 16- or 32-bit integers; two of 4 bits share a byte, the first in its lower half.

    values: of any integer dtype, within the range of the format.
    """
    data_type = SIGNED[bits] if signed else UNSIGNED[bits]
    # Two's complement: the lowest bits of an unsigned code are those of the signed type of the same width.
    raw = np.ascontiguousarray(values).astype(_STORED[bits] if bits > 8 else np.uint8)
    if bits == 4:
        raw = packed(raw)
    return TensorProto(name=name, data_type=data_type, dims=values.shape, raw_data=raw.tobytes())


def packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n / 2, rounded up) bytes of the lower four bits of (n) codes."""
    nibbles = codes.reshape(-1) & 0x0F
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return np.asarray(nibbles[0::2] | (nibbles[1::2] << 4), np.uint8)


def floats(name: str, values: Tensor, fmt: Format) -> TensorProto:
    """A constant rounded to a float format; above 65504 fp16 is infinity, as `quantizers.cast` has it."""
    values = values.detach().cpu().contiguous()
    if fmt.name == "fp32":
        raw = values.float().numpy().tobytes()
    elif fmt.name == "fp16":
        raw = values.half().numpy().tobytes()
    else:
        raw = values.bfloat16().view(torch.int16).numpy().tobytes()
    return TensorProto(name=name, data_type=FLOATS[fmt.name], dims=values.shape, raw_data=raw)


def without_dead_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in place, without nodes and constants that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    kept.reverse()
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    return model
