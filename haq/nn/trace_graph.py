"""From the ops of a pass to a workload's graph: dead glue, names of leaf modules, parameters of no layer, outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from haq.nn.sites import storage_key
from haq.workload import GlueOp, LayerSpec, Shape


def without_dead_glue(nodes: list[LayerSpec | GlueOp], ends: tuple[str, ...]) -> list[LayerSpec | GlueOp]:
    """The nodes without glue that nothing reads (a model that asks whether its mask is full, say)."""
    wanted = set(ends)
    kept = []
    for node in reversed(nodes):
        if node.name in wanted or isinstance(node, LayerSpec):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def short_names(model: nn.Module, nodes: list[LayerSpec | GlueOp], modules: Mapping[str, str]) -> dict[str, str]:
    """A leaf module that is just one glue op lends it its name (`maxpool` rather than `maxpool/pool_0`)."""
    leaves = {name for name, module in model.named_modules() if name and not module._modules}
    by_module: dict[str, list[LayerSpec | GlueOp]] = {}
    for node in nodes:
        by_module.setdefault(modules[node.name], []).append(node)
    short: dict[str, str] = {}
    for module, here in by_module.items():
        first = [n for n in here if "@" not in n.name]
        if module in leaves and len(first) == 1 and isinstance(first[0], GlueOp):
            short |= {n.name: module + n.name[len(first[0].name) :] for n in here}
    return short


def unquantized(model: nn.Module, nodes: list[LayerSpec | GlueOp]) -> int:
    """Elements of all parameters (used or not, tied ones once) that are no layer's weight or bias."""
    places = {(storage_key(p), p.storage_offset(), p.numel()) for p in model.parameters()}
    layers = [n for n in nodes if isinstance(n, LayerSpec)]
    weights = {n.weight.key: n.weight.elements for n in layers if n.weight}
    biases = {n.module: n.bias_elements for n in layers}
    # Never negative: a bias that two layers share is stored with each of them.
    return max(0, sum(elements for _, _, elements in places) - sum(weights.values()) - sum(biases.values()))


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The tensors of a model's result, in any nest of containers and data classes."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(outputs):
        yield from tensors_in(vars(outputs))


def per_sample(tensor: Tensor) -> Shape:
    """The shape without a batch axis of one."""
    shape = tuple(tensor.shape)
    return shape[1:] if shape and shape[0] == 1 else shape
