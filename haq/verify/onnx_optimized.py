"""Reads off the graph that ONNX Runtime's optimizer writes in which format each layer is multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import NodeProto

from haq.measure.ort import FLOAT_OPS, INTEGER_OPS
from haq.verify.onnx_graph import LAYERS

INTEGER = INTEGER_OPS | {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearConvTranspose"}
FLOAT = FLOAT_OPS | {"ConvTranspose", "Einsum", "MatMulNBits"}
"""MatMulNBits unpacks codes of 4 or 8 bits inside the kernel, and multiplies floats."""

FUSED = frozenset({
    "Relu", "Clip", "Add", "Mul", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "LeakyRelu",
    "QuantizeLinear", "DequantizeLinear", "Cast",
})  # fmt: skip
"""What may become part of a layer's kernel, which then may bear the name of what comes out."""

MOST_FUSED = 4


def arithmetic(optimized: onnx.ModelProto, written: onnx.ModelProto, layers: Mapping[str, NodeProto]) -> dict[str, str]:
    """Layer -> int8 or fp32, for every layer whose kernel can still be told in the optimized graph.

    written: the graph before. layers: the nodes in it that layers are. A look-up multiplies nothing and is left out.
    """
    by_node = {node.output[0]: layer for layer, node in layers.items() if node.op_type != "Gather"}
    names = {node.name: layer for layer, node in layers.items() if node.op_type != "Gather"}
    producers = {name: node for node in written.graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in optimized.graph.node:
        kind = "int8" if node.op_type in INTEGER else "fp32" if node.op_type in FLOAT else None
        if kind is None:
            continue
        for name in _names(node):
            layer = names.get(name) or _before(name, producers, by_node)
            if layer is not None and layer not in found:
                found[layer] = kind
                break
    return found


def _names(node: NodeProto) -> Iterator[str]:
    """What the node and its results are called, also without the words that the optimizer appends."""
    for name in (node.name, *node.output):
        yield name
        while "_" in name:
            name = name.rpartition("_")[0]
            yield name


def _before(tensor: str, producers: Mapping[str, NodeProto], by_node: Mapping[str, str]) -> str | None:
    """The layer whose result a tensor of the written graph is, with at most MOST_FUSED small ops after it."""
    for _ in range(MOST_FUSED + 1):
        if tensor in by_node:
            return by_node[tensor]
        node = producers.get(tensor)
        if node is None or node.op_type in LAYERS or node.op_type not in FUSED:
            return None
        tensor = node.input[0]
    return None
