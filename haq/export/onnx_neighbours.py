"""What stands around a marker of a captured graph: who reads a tensor, and which clamp is part of a rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
import torch
from onnx import NodeProto, numpy_helper

from haq.export.onnx_values import DOMAIN
from haq.nn.calibrate import Operand
from haq.nn.quantizers import ActivationQuantizer, largest_code

CLAMPS = frozenset({"Relu", "Clip"})


class Neighbours:
    """Questions about one captured graph, which stays as it is. quantizers: of the config that is put into it."""

    def __init__(self, marked: onnx.ModelProto, quantizers: Mapping[Operand, ActivationQuantizer]) -> None:
        self._quantizers = quantizers
        self._constants = {tensor.name: tensor for tensor in marked.graph.initializer}
        self._outputs = {value.name for value in marked.graph.output}
        self._producers: dict[str, NodeProto] = {}
        self._readers: dict[str, list[NodeProto]] = {}
        for source in marked.graph.node:
            # A copy: the graph is rewritten meanwhile.
            node = NodeProto()
            node.CopyFrom(source)
            self._producers |= dict.fromkeys(node.output, node)
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def readers(self, tensor: str) -> list[NodeProto]:
        return self._readers.get(tensor, [])

    def unclamped(self, tensor: str) -> str:
        """What a clamp was applied to, where all readers of its result round as much away; else the tensor itself.

        The numbers are the same, and ONNX Runtime takes the rounding into the layer before it: a Clip it leaves where
        the last digit of the range's end is on the other side of the clamp's.
        """
        clamp = self._producers.get(tensor)
        if clamp is None or clamp.op_type not in CLAMPS:
            return tensor
        read, ends = self._rounding(tensor), self._ends(clamp)
        if not read or ends is None:
            return tensor
        both = torch.tensor(ends)
        is_part = all(q.codes(both).tolist() == [0, largest_code(q.format)] for q in read)
        return clamp.input[0] if is_part else tensor

    def fuses_with_bias(self, bias: str) -> bool:
        """Whether an integer kernel can take in the one node that adds this bias.

        ONNX Runtime has one for a matrix product, and one for a convolution whose result is rounded at once, and in one
        way only.
        """
        readers = self.readers(bias)
        if len(readers) != 1 or readers[0].op_type not in ("Gemm", "Conv") or list(readers[0].input).index(bias) != 2:
            return False
        if readers[0].op_type == "Gemm":
            return True
        result = self._through(readers[0].output[0], DOMAIN)
        if (following := self.readers(result)) and following[0].op_type in CLAMPS:
            result = self._through(result, "")
        return len(set(self._rounding(result))) == 1

    def _through(self, tensor: str, domain: str) -> str:
        """The result of the one node of this domain that reads the tensor; the tensor where there are others."""
        readers = self.readers(tensor)
        return readers[0].output[0] if len(readers) == 1 and readers[0].domain == domain else tensor

    def _rounding(self, tensor: str) -> list[ActivationQuantizer]:
        """The static quantizers that read a tensor; none where anything else does."""
        found = []
        for node in self.readers(tensor):
            if node.domain != DOMAIN or node.op_type != "Operand" or tensor in self._outputs:
                return []
            quantizer = self._quantizers.get((text(node, "layer"), number(node, "index")))
            if quantizer is None:
                return []
            found.append(quantizer)
        return found

    def _ends(self, clamp: NodeProto) -> tuple[float, float] | None:
        if clamp.op_type == "Relu":
            return 0.0, math.inf
        ends = [self._constants.get(name) for name in clamp.input[1:]]
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            return None
        return float(numpy_helper.to_array(ends[0])), float(numpy_helper.to_array(ends[1]))


def text(node: NodeProto, name: str) -> str:
    """The text that a marker carries under this name."""
    return next(str(a.s, "utf-8") for a in node.attribute if a.name == name)


def number(node: NodeProto, name: str) -> int:
    """The whole number that a node carries under this name, 0 where it carries none."""
    return next((a.i for a in node.attribute if a.name == name), 0)
