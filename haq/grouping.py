"""Finds the layers that a device treats alike in a workload's graph: readers of one tensor, and two that are added."""

from __future__ import annotations

from haq.workload import GlueOp, LayerSpec, Workload

Tie = tuple[str, ...]
"""Layer names in the workload's order."""


def natural_groups(workload: Workload) -> tuple[Tie, ...]:
    """The sets of layers that a device treats alike, each once; a layer may be in several.

    Shared input: convolutions and linear layers that read the same tensor have one input quantizer (query, key and
    value; a residual block's first convolution and its downsample, which HAWQ-V3, Yao et al. 2021, links too). Views
    are no nodes of a workload, so that parts of one tensor count as that tensor, as they do for a quantizer; every
    node, a pooling too, makes another tensor.
    Residual add: two such layers whose outputs are added as they come (batch norms are folded). A sum that passed an
    earlier add, an activation or a norm ties nothing, so that no chain runs through a stage; nor does a concatenation.
    Embeddings, whose bits are storage only, and attention products are never tied.
    """
    weighted = {layer.name: layer for layer in workload.layers if _has_weights(layer)}
    readers: dict[tuple[str, ...], list[str]] = {}
    for layer in weighted.values():
        readers.setdefault(layer.inputs, []).append(layer.name)
    shared = [tuple(names) for source, names in readers.items() if source and len(names) > 1]
    order = {name: place for place, name in enumerate(workload.layer_names)}
    added = [tuple(sorted(set(op.inputs), key=order.__getitem__)) for op in workload.nodes if _adds(op, weighted)]
    return tuple(dict.fromkeys(shared + added))


def _has_weights(layer: LayerSpec) -> bool:
    return layer.weight is not None and layer.kind.startswith(("conv", "linear"))


def _adds(node: LayerSpec | GlueOp, weighted: dict[str, LayerSpec]) -> bool:
    """Whether the node adds two weighted layers' outputs of one shape."""
    return (
        isinstance(node, GlueOp)
        and node.kind == "add"
        and len(node.inputs) == len(set(node.inputs)) == 2
        and set(node.inputs) <= weighted.keys()
        and len(set(node.input_shapes)) == 1
    )
