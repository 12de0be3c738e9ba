"""Finds what only one op of a traced network reads: it may be rounded where it stands, without a clamp before it."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import nn

from haq.nn.quantizers import ActivationQuantizer, largest_code
from haq.workload import GlueOp, LayerSpec, Workload

_FRESH = frozenset({"norm", "softmax", "pool", "reduce"})
"""Glue that always writes its result to memory of its own."""
_IN_PLACE = frozenset({"activation", "smooth", "add", "mul"})
"""Glue that a network may run in place (`relu_`), and that else writes to memory of its own."""


def sole_readers(workload: Workload) -> frozenset[str]:
    """The nodes whose only operand nothing else reads, and lies in memory that the forward pass made itself.

    Never readers of a network's input or output, or of what may turn out to be a view of another tensor: `contiguous()`
    copies or not, as the strides are. None at all in a network with ops that the tracer does not know.
    """
    if workload.unsupported:
        return frozenset()
    owned: set[str] = set()
    for node in workload.nodes:
        if _owns_memory(node, owned):
            owned.add(node.name)
    alone = owned - set(workload.outputs)
    return frozenset(
        node.name
        for node in workload.nodes
        if len(node.inputs) == 1 and node.inputs[0] in alone and workload.consumers[node.inputs[0]] == (node.name,)
    )


@dataclass(frozen=True)
class Clamp:
    """A module that cuts numbers off at low and high (ReLU: 0, infinity), and the one layer that reads its result."""

    module: str
    layer: str
    low: float
    high: float

    def is_part_of(self, quantizer: ActivationQuantizer) -> bool:
        """Whether the layer's quantizer maps all that the module cuts off to its first and last code anyway."""
        ends = quantizer.codes(torch.tensor([self.low, self.high], device="cpu"))
        return ends.tolist() == [0, largest_code(quantizer.format)]


def clamps(model: nn.Module, workload: Workload) -> tuple[Clamp, ...]:
    """The clamping modules that run once, on what nothing else reads, for one layer that alone reads the result."""
    alone = sole_readers(workload)
    readers = {layer.inputs[0]: layer.name for layer in workload.layers if layer.name in alone}
    names = {node.name for node in workload.nodes}
    modules = dict(model.named_modules())
    found = []
    for node in workload.nodes:
        ends = _ends(modules.get(node.name))
        if ends is not None and node.name in alone and node.name in readers and f"{node.name}@1" not in names:
            found.append(Clamp(node.name, readers[node.name], *ends))
    return tuple(found)


def _ends(module: nn.Module | None) -> tuple[float, float] | None:
    """Where the module cuts off; None where it does something else, or somebody watches it."""
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) is nn.ReLU:
        return 0.0, math.inf
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        assert isinstance(module, nn.Hardtanh)
        return float(module.min_val), float(module.max_val)
    return None


def _owns_memory(node: LayerSpec | GlueOp, owned: Set[str]) -> bool:
    """Whether the node's result is in memory that no input, parameter or other node's result shares.

    owned: the nodes before it of which that is so.
    """
    if isinstance(node, LayerSpec) or node.kind in _FRESH:
        return True
    if node.kind == "reshape":
        # A border or a concatenation; a result of as many elements as the input may be the input itself.
        return len(node.inputs) > 1 or node.output_elements > node.input_elements
    return node.kind in _IN_PLACE and bool(node.inputs) and all(source in owned for source in node.inputs)
