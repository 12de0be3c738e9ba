"""Puts a config's numbers and changes of format in the places that a captured graph marks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from haq.errors import InputError
from haq.export.onnx_draft import Draft, Style
from haq.export.onnx_neighbours import Neighbours, number, text
from haq.export.onnx_operands import FLOAT, operand, rounded
from haq.export.onnx_values import DOMAIN, without_dead_nodes
from haq.export.onnx_weights import bias, integer_bias, looked_up, multiplies_integers, weight, with_room_for
from haq.nn.exportable import Exportable
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import QuantizedWeight
from haq.nn.tuned import bias_key
from haq.precision import Precision
from haq.workload import LayerSpec

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "Einsum"})
"""What a layer multiplies or looks up with: that node gets the layer's name."""


@dataclass(frozen=True, eq=False)
class Written:
    """A config's graph. notes: layer -> what its numbers lost."""

    model: onnx.ModelProto
    notes: Mapping[str, str]


def written(marked: onnx.ModelProto, what: Exportable, style: Style) -> Written:
    """The config's graph, of standard operators. marked: of `onnx_capture.captured`, for the same network.

    Constants are named as `haq.nn.tuned` names its tensors, a weight and a bias as the state dict does; the node that
    multiplies is named as its layer. Raises InputError where the graph would not be valid.
    """
    model = onnx.ModelProto()
    model.CopyFrom(marked)
    writing = _Writing(model, what, style)
    writing.rewrite()
    without_dead_nodes(model)
    del model.opset_import[:]
    model.opset_import.extend(entry for entry in marked.opset_import if entry.domain == "")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(
            "the network cannot be written in these formats", where=what.workload.name,
            got=(str(error).strip().splitlines() or [""])[0][:200], expected="a graph whose types agree",
        ) from None  # fmt: skip
    return Written(model, writing.notes)


class _Writing:
    """One pass over a graph, in place. It changes as it goes.

    owners: state-dict key -> the layers that multiply with it or add it. now: tensor -> the one that took its place.
    added_as_integers: key of a bias -> key of its layer's weight, and the scale of the layer's operand.
    """

    def __init__(self, model: onnx.ModelProto, what: Exportable, style: Style) -> None:
        self.model, self.what = model, what
        self.draft = Draft(style, {tensor.name: tensor for tensor in model.graph.initializer})
        self.layers = {layer.name: layer for layer in what.workload.layers}
        self.owners: dict[str, list[LayerSpec]] = {}
        for layer in what.workload.layers:
            if layer.weight is not None:
                for key in (layer.weight.key, bias_key(what.model, layer)):
                    if key is not None:
                        self.owners.setdefault(key, []).append(layer)
        self.now: dict[str, str] = {}
        self.made_by: dict[str, NodeProto] = {}
        self.neighbours = Neighbours(model, what.numbers.quantizers)
        self.weights = dict(what.numbers.weights)
        self.notes: dict[str, str] = {}
        self.added_as_integers: dict[str, tuple[str, float]] = {}
        if style.integer_kernels:
            self._choose_integer_biases()

    def rewrite(self) -> None:
        tables = self._tables()
        for node in self.model.graph.node:
            if node.domain == DOMAIN:
                if node.output[0] not in tables:
                    self.now[node.output[0]] = _MARKERS[node.op_type](self, node)
            elif node.op_type == "Gather" and node.input[0] in tables:
                key = tables[node.input[0]]
                stored, ids = self.what.numbers.weights[key], self.now.get(node.input[1], node.input[1])
                assert isinstance(stored, QuantizedWeight)
                self.now[node.output[0]] = looked_up(self.draft, key, stored, ids, self._precision(key))
            else:
                self._append(node)
        self._finish()

    def _append(self, node: NodeProto) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self.now.get(name, name) for name in node.input]
        self.draft.nodes.append(copy)
        self.made_by |= dict.fromkeys(copy.output, copy)

    def _finish(self) -> None:
        """The results of the network keep their names, whatever took their places."""
        graph = self.model.graph
        for value in graph.output:
            if (source := self.now.get(value.name)) is not None:
                self.draft.nodes.append(onnx.helper.make_node("Identity", [source], [value.name], name=value.name))
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.draft.nodes)
        graph.initializer.extend(self.draft.constants.values())

    def _precision(self, key: str) -> Precision:
        return self.what.executed.precision(self.owners[key][0].name)

    def _tables(self) -> dict[str, str]:
        """Results of markers -> keys of tables in 8 or 16 bits that are looked up in and nothing else."""
        found = {}
        for node in self.model.graph.node:
            if node.domain != DOMAIN or node.op_type != "Parameter":
                continue
            stored, readers = self.what.numbers.weights.get(text(node, "key")), self.neighbours.readers(node.output[0])
            if (
                isinstance(stored, QuantizedWeight)
                and stored.format.bits > 4
                and stored.channel_axis == 0
                and all(
                    n.op_type == "Gather" and n.input[0] == node.output[0] and not number(n, "axis") for n in readers
                )
            ):
                found[node.output[0]] = text(node, "key")
        return found

    def _parameter(self, node: NodeProto) -> str:
        key = text(node, "key")
        precision = self._precision(key)
        if key in self.weights:
            return weight(self.draft, key, self.weights[key], precision)
        values = self.what.numbers.biases[key]
        if key not in self.added_as_integers:
            return bias(self.draft, key, values, precision)
        of, scale = self.added_as_integers[key]
        stored = self.weights[of]
        assert isinstance(stored, QuantizedWeight)
        return integer_bias(self.draft, key, values, (of, stored), scale)

    def _choose_integer_biases(self) -> None:
        """Where an integer kernel can run: one layer alone has weight and bias, and one scale per channel."""
        numbers = self.what.numbers
        for node in self.model.graph.node:
            if node.op_type != "Parameter" or not self.neighbours.fuses_with_bias(node.output[0]):
                continue
            layer, key = self.owners[text(node, "key")][0], text(node, "key")
            assert layer.weight is not None
            stored, read = numbers.weights[layer.weight.key], numbers.quantizers.get((layer.name, 0))
            alone = len(self.owners[key]) == len(self.owners[layer.weight.key]) == 1
            if not alone or read is None or not multiplies_integers(self._precision(key)):
                continue
            if isinstance(stored, QuantizedWeight) and stored.channel_axis == 0:
                self.added_as_integers[key] = layer.weight.key, read.scale
                self.weights[layer.weight.key] = raised = with_room_for(numbers.biases[key], stored, read.scale)
                if count := int((raised.scales != stored.scales).sum()):
                    self.notes[layer.name] = (
                        f"larger scales in {count} of {len(stored.scales)} channels: biases must fit 32 bits"
                    )

    def _operand(self, node: NodeProto) -> str:
        name = text(node, "layer"), number(node, "index")
        fmt = self.what.executed.precision(name[0]).activation
        source = self.neighbours.unclamped(node.input[0])
        x = self.now.get(source, source)
        return operand(self.draft, x, fmt, name, self.what.numbers.quantizers.get(name))

    def _output(self, node: NodeProto) -> str:
        layer = text(node, "layer")
        y = self.now.get(node.input[0], node.input[0])
        self._name_product(layer, y)
        fmt = arithmetic(self.what.executed.precision(layer))
        if fmt.name != "fp32" and self.draft.style.computes(fmt):
            return self.draft.cast(y, FLOAT)
        return rounded(self.draft, y, fmt)

    def _name_product(self, layer: str, tensor: str) -> None:
        """Give the layer's name to the node that multiplies, a few nodes before the layer's result."""
        while (node := self.made_by.get(tensor)) is not None:
            if node.op_type in PRODUCTS:
                node.name = layer
                return
            tensor = node.input[0]


_MARKERS = {"Parameter": _Writing._parameter, "Operand": _Writing._operand, "Output": _Writing._output}
