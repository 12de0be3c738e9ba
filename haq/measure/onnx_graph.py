"""Turns a small hand-written workload into an ONNX model in fp32, with random weights, for ONNX Runtime to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from haq.workload import GlueOp, LayerSpec, Shape, Workload, elements

OPSET, IR = 21, 10
"""The oldest with 4- and 16-bit quantization, and the intermediate representation that came with it."""


@dataclass
class _Draft:
    """The graph while it is written. shapes: of every tensor, without the batch; is_index: inputs of look-ups."""

    batch: int
    shapes: dict[str, Shape]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def weight(self, name: str, shape: Shape) -> str:
        """Small numbers around zero, one row of them repeated: values do not matter, and drawing them takes time."""
        row = self.random.uniform(-0.1, 0.1, 4096).astype(np.float32)
        return self.constant(name, np.resize(row, shape))

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(f"ints.{'.'.join(map(str, values))}", np.array(values, np.int64))


def build(workload: Workload, batch: int = 1) -> onnx.ModelProto:
    """The model; its nodes that multiply or look up have the names of the workload's layers.

    Knows the nodes of `haq.measure.chain`: a convolution keeps the size but for its stride, a `smooth` is HardSwish on
    channels x height x width, HardSigmoid on a gate of 1 x 1 and Gelu on rows, a `reduce` averages over the image, a
    `reshape` puts attention heads side by side, or concatenates two operands.
    """
    draft = _Draft(batch, dict(workload.inputs))
    for node in workload.nodes:
        if isinstance(node, LayerSpec):
            _LAYERS[_layer_kind(node)](draft, node)
        else:
            _GLUE[node.kind](draft, node)
        draft.shapes[node.name] = _result_shape(node)
    ids = {name for n in workload.layers if n.kind == "embedding" for name in n.inputs}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name in ids else TensorProto.FLOAT, (batch, *shape))
        for name, shape in workload.inputs
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in workload.outputs]
    graph = helper.make_graph(draft.nodes, "haq", inputs, outputs, list(draft.constants.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _result_shape(node: LayerSpec | GlueOp) -> Shape:
    """Of the tensor that a node writes: heads that were put side by side are rows again."""
    if node.kind == "reshape" and len(node.inputs) == 1:
        return (node.output_shape[0], elements(node.output_shape[1:]))
    return node.output_shape


def _layer_kind(layer: LayerSpec) -> str:
    return "conv" if layer.kind.startswith("conv") else layer.kind


def _conv(draft: _Draft, layer: LayerSpec) -> None:
    assert layer.weight is not None
    kernel = layer.weight.shape[2:]
    strides = [-(-i // o) for i, o in zip(layer.input_shapes[0][1:], layer.output_shape[1:], strict=True)]
    inputs = [layer.inputs[0], draft.weight(layer.weight.key, layer.weight.shape)]
    inputs.append(draft.weight(f"{layer.name}.bias", (layer.output_shape[0],)))
    pads = [k // 2 for k in kernel] * 2
    draft.node("Conv", inputs, layer.name, kernel_shape=kernel, strides=strides, pads=pads, group=layer.groups)


def _linear(draft: _Draft, layer: LayerSpec) -> None:
    """As torch exports it: a product with the transposed weight, and an addition."""
    assert layer.weight is not None
    weight = draft.weight(layer.weight.key, (layer.weight.shape[1], layer.weight.shape[0]))
    bias = draft.weight(f"{layer.name}.bias", (layer.weight.shape[0],))
    if len(layer.input_shapes[0]) == 1:
        draft.node("Gemm", [layer.inputs[0], weight, bias], layer.name)
        return
    product = draft.node("MatMul", [layer.inputs[0], weight], f"{layer.name}.product")
    draft.nodes[-1].name = layer.name
    draft.node("Add", [product, bias], layer.name)
    draft.nodes[-1].name = f"{layer.name}.add"


def _embedding(draft: _Draft, layer: LayerSpec) -> None:
    assert layer.weight is not None
    draft.node("Gather", [draft.weight(layer.weight.key, layer.weight.shape), layer.inputs[0]], layer.name)


def _product(draft: _Draft, layer: LayerSpec) -> None:
    """Operands that are rows of all heads are cut into heads first, the second of the first product transposed."""
    in_heads = [draft.shapes[name] == shape for name, shape in zip(layer.inputs, layer.input_shapes, strict=True)]
    operands = list(layer.inputs)
    for side in (0, 1):
        if in_heads[side]:
            continue
        tokens, width = draft.shapes[layer.inputs[side]]
        heads = layer.output_shape[0]
        cut = draft.ints((draft.batch, tokens, heads, width // heads))
        rows = draft.node("Reshape", [layer.inputs[side], cut], f"{layer.name}.{side}.cut")
        order = (0, 2, 3, 1) if side == 1 and not in_heads[0] else (0, 2, 1, 3)
        operands[side] = draft.node("Transpose", [rows], f"{layer.name}.{side}", perm=order)
    draft.node("MatMul", operands, layer.name)


def _activation(draft: _Draft, op: GlueOp) -> None:
    draft.node("Relu", op.inputs, op.name)


def _smooth(draft: _Draft, op: GlueOp) -> None:
    if len(op.output_shape) < 3:
        draft.node("Gelu", op.inputs, op.name)
    elif elements(op.output_shape[1:]) == 1:
        draft.node("HardSigmoid", op.inputs, op.name, alpha=1 / 6, beta=0.5)
    else:
        draft.node("HardSwish", op.inputs, op.name)


def _two(name: str) -> Callable[[_Draft, GlueOp], None]:
    """An op of two operands; with one operand of its own the other is a constant."""

    def write(draft: _Draft, op: GlueOp) -> None:
        inputs = op.inputs if len(op.inputs) > 1 else (*op.inputs, draft.constant("eighth", np.float32(0.125)))
        draft.node(name, inputs, op.name)

    return write


def _norm(draft: _Draft, op: GlueOp) -> None:
    width = op.output_shape[-1:]
    gains = [draft.weight(f"{op.name}.{side}", width) for side in ("gain", "shift")]
    draft.node("LayerNormalization", [*op.inputs, *gains], op.name, axis=-1, epsilon=1e-5)


def _softmax(draft: _Draft, op: GlueOp) -> None:
    draft.node("Softmax", op.inputs, op.name, axis=-1)


def _pool(draft: _Draft, op: GlueOp) -> None:
    stride = -(-op.input_shapes[0][1] // op.output_shape[1])
    draft.node("MaxPool", op.inputs, op.name, kernel_shape=(3, 3), strides=(stride, stride), pads=(1, 1, 1, 1))


def _reduce(draft: _Draft, op: GlueOp) -> None:
    draft.node("ReduceMean", [*op.inputs, draft.ints((2, 3))], op.name, keepdims=1)


def _reshape(draft: _Draft, op: GlueOp) -> None:
    if len(op.inputs) > 1:
        draft.node("Concat", op.inputs, op.name, axis=1)
        return
    tokens, heads, depth = op.output_shape
    turned = draft.node("Transpose", op.inputs, f"{op.name}.turned", perm=(0, 2, 1, 3))
    draft.node("Reshape", [turned, draft.ints((draft.batch, tokens, heads * depth))], op.name)


_LAYERS = {"conv": _conv, "linear": _linear, "embedding": _embedding, "matmul": _product}
_GLUE = {
    "activation": _activation,
    "smooth": _smooth,
    "add": _two("Add"),
    "mul": _two("Mul"),
    "norm": _norm,
    "softmax": _softmax,
    "pool": _pool,
    "reduce": _reduce,
    "reshape": _reshape,
}
