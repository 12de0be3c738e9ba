"""Reads back from an ONNX graph what each layer is stored as and fed with, and by which scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from haq.precision import FORMATS, Format, Precision
from haq.verify.artifact import Codes

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "Einsum"})
"""Ops that a layer is, as it is written."""

PASSED = frozenset({
    "Cast", "Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Split",
})  # fmt: skip
"""What may stand between a layer and where its operand was rounded: elements move, or change their type."""

TYPES: Mapping[int, str] = {
    TensorProto.INT4: "int4", TensorProto.UINT4: "int4", TensorProto.INT8: "int8", TensorProto.UINT8: "int8",
    TensorProto.INT16: "int16", TensorProto.UINT16: "int16", TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16", TensorProto.FLOAT: "fp32",
}  # fmt: skip
"""Element type -> format."""

INTEGERS = frozenset({TensorProto.INT32, *(data_type for data_type, name in TYPES.items() if name.startswith("int"))})


@dataclass(frozen=True)
class Operand:
    """An operand of a layer: the narrowest format on its way. root: the initializer it comes from, if it is a weight.

    scale: absent for floats, and for scales that are found as the network runs.
    """

    format: Format
    root: str | None = None
    scale: NDArray[np.float64] | None = None


class Graph:
    """An index over one model; it reads and never changes it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}

    @cached_property
    def _types(self) -> dict[str, int]:
        """Tensor -> element type, where inference tells."""
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        return {value.name: value.type.tensor_type.elem_type for value in values}

    def layer_nodes(self, layers: Iterable[str]) -> dict[str, NodeProto]:
        """Layer -> its node: the one of its name, else the one that reads its weight. Layers without one are absent."""
        nodes = [node for node in self.model.graph.node if node.op_type in LAYERS]
        named = {node.name: node for node in nodes}
        by_weight: dict[str, NodeProto] = {}
        for node in nodes:
            for operand in self._operands(node):
                if operand.root is not None:
                    by_weight.setdefault(operand.root, node)
        found = {}
        for layer in layers:
            node = named.get(layer) or by_weight.get(f"{layer.split('@')[0]}.weight")
            if node is not None:
                found[layer] = node
        return found

    def precision(self, node: NodeProto, asked: Precision) -> Precision:
        """What the node multiplies; of two activations the wider counts.

        asked: stands for what a graph cannot show: a product's weight and a look-up's index, and a float operand whose
        values had been rounded to a narrower float before, by the layer that they come from.
        """
        operands = self._operands(node)
        weights = [operand.format for operand in operands if operand.root is not None]
        activations = [operand.format for operand in operands if operand.root is None]
        weight = weights[0] if weights else asked.weight
        activation = max(activations, key=lambda fmt: fmt.bits) if activations else asked.activation
        both_floats = not (activation.is_integer or asked.activation.is_integer)
        narrower = both_floats and activation.bits < asked.activation.bits
        return Precision(weight, asked.activation if narrower else activation)

    def scales(self, node: NodeProto) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """`weight` or `operand 0` -> the scales that codes are multiplied with before they reach the node."""
        index = 0
        for operand in self._operands(node):
            if operand.root is not None:
                name = "weight"
            else:
                name, index = f"operand {index}", index + 1
            if operand.scale is not None:
                yield name, operand.scale

    def codes(self, node: NodeProto) -> Codes | None:
        """The integers of the node's weight and bias; None where its weight is none of integers."""
        roots = [operand.root for operand in self._operands(node) if operand.root is not None]
        weight = self._integers(roots[0]) if roots else None
        if weight is None:
            return None
        added = self.producers.get(node.input[2]) if len(node.input) > 2 else None
        is_integer = added is not None and added.op_type == "DequantizeLinear"
        return Codes(weight, self._integers(added.input[0]) if added is not None and is_integer else None)

    def _integers(self, name: str) -> NDArray[np.integer[Any]] | None:
        tensor = self.initializers.get(name)
        if tensor is None or tensor.data_type not in INTEGERS:
            return None
        values = numpy_helper.to_array(tensor)
        return values if tensor.data_type not in (TensorProto.INT4, TensorProto.UINT4) else values.astype(np.int8)

    def _operands(self, node: NodeProto) -> list[Operand]:
        """What the node multiplies: the table of a look-up, else its first two inputs."""
        if node.op_type == "Gather":
            read = self._looked_up(node)
            return [] if read is None else [read]
        return [self._operand(name) for name in node.input[:2]]

    def _looked_up(self, node: NodeProto) -> Operand | None:
        """The table of a look-up; None where elements of an activation are picked. Codes are scaled after it."""
        table = self._operand(node.input[0])
        return None if table.root is None else Operand(table.format, table.root, self._scale_after(node))

    def _scale_after(self, node: NodeProto) -> NDArray[np.float64] | None:
        """Of rows of codes: by a dequantization, or a product with rows of a table of scales."""
        result = node.output[0]
        for after in self.model.graph.node:
            if result in after.input and after.op_type == "Cast":
                result = after.output[0]
            elif after.input[:1] == [result] and after.op_type == "DequantizeLinear":
                return self._constant(after.input[1])
            elif result in after.input and after.op_type == "Mul":
                (other,) = [name for name in after.input if name != result]
                while other in self.producers and self.producers[other].op_type in PASSED | {"Gather"}:
                    other = self.producers[other].input[0]
                return self._constant(other)
        return None

    def _operand(self, tensor: str) -> Operand:
        """Back from a tensor to the initializer that it comes from, or to where an activation was rounded."""
        seen, scale = [FORMATS[TYPES.get(self._types.get(tensor, TensorProto.FLOAT), "fp32")]], None
        while tensor not in self.initializers:
            node = self.producers.get(tensor)
            if node is None:
                return Operand(narrowest(seen))
            if (per_token := self._per_token(node)) is not None:
                return Operand(per_token)
            if node.op_type == "DequantizeLinear":
                source, scale = self.producers.get(node.input[0]), self._constant(node.input[1])
                if source is not None and source.op_type == "QuantizeLinear":
                    return Operand(FORMATS[self._type_of_codes(node)], None, scale)
                seen.append(self._codes(node))
            elif node.op_type == "Cast":
                to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
                seen += [FORMATS[TYPES[to]]] if to in TYPES else []
            elif node.op_type not in PASSED:
                # What a layer before it rounded to, as codes of a table are, is no rounding of this layer's.
                return Operand(narrowest([fmt for fmt in seen if not fmt.is_integer]))
            tensor = node.input[0]
        seen.append(FORMATS[TYPES.get(self.initializers[tensor].data_type, "fp32")])
        return Operand(narrowest(seen), tensor, scale)

    def _per_token(self, node: NodeProto) -> Format | None:
        """The format of codes that are found as the network runs: clip(round(x / scale)) x scale."""
        before = node
        for op in ("Mul", "Clip", "Round"):
            if before.op_type != op or before.input[0] not in self.producers:
                return None
            clip, before = before, self.producers[before.input[0]]
            largest = self._constant(clip.input[2]) if op == "Clip" and len(clip.input) > 2 else None
            if op == "Clip" and (largest is None or float(largest) != FORMATS["int8t"].largest):
                return None
        return FORMATS["int8t"]

    def _codes(self, node: NodeProto) -> Format:
        """The format of a weight's codes, with its groups."""
        name = self._type_of_codes(node)
        block = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0)
        return FORMATS.get(f"{name}g{block}", FORMATS[name])

    def _type_of_codes(self, node: NodeProto) -> str:
        codes, point = node.input[0], node.input[2] if len(node.input) > 2 else ""
        for name in (point, codes):
            if name in self.initializers:
                return TYPES[self.initializers[name].data_type]
        return TYPES.get(self._types.get(codes, TensorProto.UINT8), "int8")

    def _constant(self, name: str) -> NDArray[np.float64] | None:
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float64)


def narrowest(formats: Sequence[Format]) -> Format:
    """The one with the fewest bits, the first of equals."""
    return min(formats, key=lambda fmt: fmt.bits)


def initializer_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers as they are packed: two 4-bit codes to a byte."""
    return sum(_packed_bytes(tensor) for tensor in model.graph.initializer)


def _packed_bytes(tensor: TensorProto) -> int:
    elements = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return -(-elements // 2)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
