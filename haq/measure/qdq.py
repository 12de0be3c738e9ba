"""Puts explicit QuantizeLinear and DequantizeLinear nodes into an ONNX graph, layer by layer, as its precisions say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

LAYERS = frozenset({"Conv", "Gemm", "MatMul", "Gather"})
"""Ops that multiply with a weight or look up in one, and products of two activations."""

CLAMPS = frozenset({"Relu", "Clip"})
"""What ONNX Runtime drops in front of a QuantizeLinear whose range starts at zero."""

INTEGER = frozenset({"Add", "Mul", "Concat", "MaxPool"})
"""Ops between layers with an integer kernel: they work in the format of the layer before them."""

SCORES = frozenset({"Add", "Mul", "Div", "Where", "Softmax"})
"""What stands between the two products of an attention. It stays in floats: ONNX Runtime's integer softmax takes seven
times as long as the one in floats (8 heads of 128 tokens, AVX-512), and rounds the scores besides."""

MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"})
"""Ops that only move elements, in whatever format these have."""

Codes = tuple[float, int]
"""Scale and zero-point of a uint8 tensor."""

SIGNED: Codes = (1 / 32, 128)
"""One choice for all tensors that may be negative: latency does not depend on it."""


def insert(model: onnx.ModelProto, is_integer: Mapping[str, bool]) -> onnx.ModelProto:
    """A copy of the model whose layers marked as integer run with int8 weights and uint8 activations.

    is_integer: node name -> whether, for every node whose op is in LAYERS. Weights get one scale per output channel, a
    look-up table one for all. An op of INTEGER between layers takes the format of the layer before it, any other works
    in floats. The scales are constants: the result is for timing, not for accuracy.
    """
    return _Rewriting(model, is_integer).result()


class _Rewriting:
    """One run over the graph. It changes as it goes: a node's inputs are known by what became of their producers.

    now: tensor -> the tensor that took its place. codes: tensor in dequantized form -> its scale and zero-point.
    anchored: tensor -> whether the layer that it comes from is an integer one. scores: tensors on the way to a softmax.
    """

    def __init__(self, model: onnx.ModelProto, is_integer: Mapping[str, bool]) -> None:
        self.model, self.is_integer = model, is_integer
        self.layers = {node.output[0] for node in layer_nodes(model)}
        self.constants = {t.name: t for t in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.users.setdefault(name, []).append(node)
        self.nodes: list[NodeProto] = []
        self.added: dict[str, TensorProto] = {}
        self.now: dict[str, str] = {}
        self.codes: dict[str, Codes] = {}
        self.anchored: dict[str, bool] = {}
        self.scores = self._scores()

    def result(self) -> onnx.ModelProto:
        done: set[str] = set()
        for node in self.model.graph.node:
            if node.output[0] in done:
                continue
            group = self._group(node)
            done |= {output for member in group for output in member.output}
            if self._integer(node):
                self._emit_integer(group)
            else:
                self._emit_float(group)
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        del copy.graph.node[:], copy.graph.initializer[:], copy.graph.value_info[:]
        for output in copy.graph.output:
            output.name = self.now.get(output.name, output.name)
        copy.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        copy.graph.initializer.extend(t for t in (*self.constants.values(), *self.added.values()) if t.name in used)
        return copy

    def _scores(self) -> set[str]:
        """What a softmax reads, and what that is computed from, back to a product."""
        found: set[str] = set()
        for node in reversed(self.model.graph.node):
            if node.op_type == "Softmax" or (node.op_type in SCORES and found & set(node.output)):
                found |= set(node.input)
        return found

    def _group(self, head: NodeProto) -> list[NodeProto]:
        """The node, the addition of its bias and a clamp, as far as nothing else reads what is between."""
        group = [head]
        if head.op_type == "MatMul" and head.input[1] in self.constants:
            group += self._next(group, {"Add"}, constant=True)
        if head.op_type in LAYERS | INTEGER:
            group += self._next(group, CLAMPS, constant=False)
        return group

    def _next(self, group: Sequence[NodeProto], ops: frozenset[str] | set[str], *, constant: bool) -> list[NodeProto]:
        result = group[-1].output[0]
        users = self.users.get(result, [])
        if len(users) != 1 or users[0].op_type not in ops or result in self.outputs:
            return []
        others = [name for name in users[0].input if name and name != result]
        return [users[0]] if all(name in self.constants for name in others) and bool(others) >= constant else []

    def _integer(self, node: NodeProto) -> bool:
        """Whether the node's kernel works on integers; what comes out is anchored to its layer either way."""
        if node.output[0] in self.layers:
            anchor = self.is_integer[node.name]
        else:
            anchor = next((self.anchored[name] for name in node.input if name in self.anchored), False)
        for member in self._group(node):
            self.anchored |= dict.fromkeys(member.output, anchor)
        if node.op_type in MOVES or (node.op_type == "Gather" and node.output[0] not in self.layers):
            return self.now.get(node.input[0], node.input[0]) in self.codes
        if node.output[0] not in self.layers and self.scores & {*node.input, *node.output}:
            return False
        return anchor and (node.output[0] in self.layers or node.op_type in INTEGER)

    def _emit_float(self, group: Sequence[NodeProto]) -> None:
        for member in group:
            self._append(member, [self.now.get(name, name) for name in member.input])

    def _append(self, node: NodeProto, inputs: Sequence[str]) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        self.nodes.append(copy)

    def _emit_integer(self, group: Sequence[NodeProto]) -> None:
        head, result = group[0], group[-1].output[0]
        if head.op_type == "Gather" and result in self.layers:
            self._look_up(head)
            return
        if head.op_type in MOVES | {"Gather"}:
            self._append(head, [self.now[head.input[0]], *head.input[1:]])
            for output in head.output:
                self.now[output] = self._quantized(output, self.codes[self.now[head.input[0]]])
            return
        weighted = head.op_type in LAYERS and head.input[1] in self.constants
        activations = [n for n in head.input if n and n not in self.constants]
        inputs = {name: self._quantized(self.now.get(name, name), SIGNED) for name in activations}
        if weighted:
            axis = 0 if head.op_type == "Conv" or _attribute(head, "transB") else 1
            inputs[head.input[1]] = self._weight(head.input[1], axis)
        elif head.op_type in INTEGER:
            inputs |= {name: self._operand(name) for name in head.input if name in self.constants}
        for name in head.input[2:] if weighted else ():
            inputs[name] = self._bias(name, inputs[head.input[1]], self.codes[inputs[head.input[0]]][0])
        self._append(head, [inputs.get(name, name) for name in head.input])
        for member in group[1:]:
            if member.op_type == "Add":
                (bias,) = (name for name in member.input if name in self.constants)
                inputs[bias] = self._bias(bias, inputs[head.input[1]], self.codes[inputs[head.input[0]]][0])
            self._append(member, [inputs.get(name, name) for name in member.input])
        if result not in self.scores:
            self.now[result] = self._quantized(result, self._codes(group, inputs))

    def _codes(self, group: Sequence[NodeProto], inputs: Mapping[str, str]) -> Codes:
        """A clamp's result fills its range; a pool's or concatenation's has that of its operands."""
        head, last = group[0], group[-1]
        if last.op_type == "Clip":
            return float(numpy_helper.to_array(self.constants[last.input[2]])) / 255, 0
        if last.op_type == "Relu":
            return SIGNED[0], 0
        codes = {self.codes[name] for name in inputs.values() if name in self.codes}
        return codes.pop() if head.op_type in ("MaxPool", "Concat") and len(codes) == 1 else SIGNED

    def _quantized(self, tensor: str, codes: Codes) -> str:
        """The tensor after a quantize and a dequantize node, one pair for all who ask."""
        if tensor in self.codes:
            return tensor
        name = f"{tensor}.dq"
        if name not in self.codes:
            scale = self._scale(codes)
            self.nodes.append(helper.make_node("QuantizeLinear", [tensor, *scale], [f"{tensor}.q"]))
            self.nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}.q", *scale], [name]))
            self.codes[name] = codes
        return name

    def _scale(self, codes: Codes) -> list[str]:
        scale, point = codes
        return [
            self._constant(f"haq.scale.{scale:g}", np.float32(scale)),
            self._constant(f"haq.point.{point}", np.uint8(point)),
        ]

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _weight(self, name: str, axis: int) -> str:
        if f"{name}.dq" in self.now:
            return f"{name}.dq"
        weight = numpy_helper.to_array(self.constants[name])
        largest = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
        scale = (np.maximum(largest, 1e-6) / 127).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        codes = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
        inputs = [
            self._constant(f"{name}.int8", codes),
            self._constant(f"{name}.scale", scale),
            self._constant(f"{name}.point", np.zeros(scale.shape, np.int8)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], axis=axis))
        self.now[f"{name}.dq"] = f"{name}.dq"
        return f"{name}.dq"

    def _operand(self, name: str) -> str:
        """A constant operand of an addition or a product, with one scale."""
        value = numpy_helper.to_array(self.constants[name])
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        scale = max(high - low, 1e-6) / 255
        codes = (scale, round(-low / scale))
        if f"{name}.dq" not in self.codes:
            inputs = [
                self._constant(f"{name}.uint8", np.rint(value / scale + codes[1]).astype(np.uint8)),
                *self._scale(codes),
            ]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"]))
            self.codes[f"{name}.dq"] = codes
        return f"{name}.dq"

    def _bias(self, name: str, weight: str, input_scale: float) -> str:
        """int32 with the product of the two scales, which is what an integer kernel adds."""
        tag = f"{weight.removesuffix('.dq')}.bias"
        if f"{tag}.dq" not in self.now:
            scale = input_scale * numpy_helper.to_array(self.added[f"{weight.removesuffix('.dq')}.scale"])
            codes = np.rint(numpy_helper.to_array(self.constants[name]) / scale).astype(np.int32)
            inputs = [
                self._constant(f"{tag}.int32", codes),
                self._constant(f"{tag}.scale", scale.astype(np.float32)),
                self._constant(f"{tag}.point", np.zeros(scale.shape, np.int32)),
            ]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{tag}.dq"], axis=0))
            self.now[f"{tag}.dq"] = f"{tag}.dq"
        return f"{tag}.dq"

    def _look_up(self, node: NodeProto) -> None:
        """Rows of a table of codes, dequantized after the look-up: the table itself is never unpacked."""
        table = numpy_helper.to_array(self.constants[node.input[0]])
        codes = np.clip(np.rint(table / SIGNED[0]) + SIGNED[1], 0, 255).astype(np.uint8)
        rows = f"{node.output[0]}.q"
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend([self._constant(f"{node.input[0]}.uint8", codes), node.input[1]])
        copy.output.append(rows)
        self.nodes.append(copy)
        self.nodes.append(helper.make_node("DequantizeLinear", [rows, *self._scale(SIGNED)], [f"{node.output[0]}.dq"]))
        self.now[node.output[0]] = f"{node.output[0]}.dq"
        self.codes[f"{node.output[0]}.dq"] = SIGNED


def _attribute(node: NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def layer_nodes(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """The nodes that take a precision, in order; picking some elements of an activation is no look-up."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return (n for n in model.graph.node if n.op_type in LAYERS and (n.op_type != "Gather" or n.input[0] in constants))
