"""Finds the operands that only one layer of a traced network reads: those may be rounded where they stand."""

from __future__ import annotations

from collections.abc import Set

from haq.workload import GlueOp, LayerSpec, Workload

_FRESH = frozenset({"norm", "softmax", "pool", "reduce"})
"""Glue that always writes its result to memory of its own."""
_IN_PLACE = frozenset({"activation", "smooth", "add", "mul"})
"""Glue that a network may run in place (`relu_`), and that else writes to memory of its own."""


def sole_readers(workload: Workload) -> frozenset[str]:
    """The layers whose only operand nothing else reads, and lies in memory that the forward pass made itself.

    Never a network's input, its output, or what may turn out to be a view of another tensor: `contiguous()` copies or
    not, as the strides are. None at all in a network with ops that the tracer does not know.
    """
    if workload.unsupported:
        return frozenset()
    owned: set[str] = set()
    for node in workload.nodes:
        if _owns_memory(node, owned):
            owned.add(node.name)
    alone = owned - set(workload.outputs)
    return frozenset(
        layer.name
        for layer in workload.layers
        if len(layer.inputs) == 1 and layer.inputs[0] in alone and workload.consumers[layer.inputs[0]] == (layer.name,)
    )


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
