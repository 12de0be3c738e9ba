"""Folds batch normalization into the layer before it, found through the traced graph."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.record import Record
from haq.nn.trace import Example, trace_record

_FOLDABLE = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_batch_norm(model: nn.Module, example: Example) -> nn.Module:
    """A copy of `model` in eval mode whose batch norms are part of the layers before them wherever that is exact.

    A batch norm folds when its only input is one convolution or linear layer that nothing else reads, both run once and
    the layer's weight is tied to no other; it is then replaced by nn.Identity. Any other one stays.
    example: as for `trace`. Works on the meta device. `model` itself is not touched.
    """
    before = trace_record(model, example, name=type(model).__name__)
    pairs = list(_pairs(model, before))
    folded = _folded(model, pairs)
    after = trace_record(folded, example, name=type(model).__name__)
    biases = {layer.name: layer.bias_elements for layer in after.workload.layers}
    if _norms(after) != _norms(before) - len(pairs):
        return copy.deepcopy(model).eval()  # the module runs from a place that no registered name leads to
    # A user's own layer class may ignore a bias that it was not built with.
    heeded = [(layer, norm) for layer, norm in pairs if biases[layer]]
    return folded if heeded == pairs else _folded(model, heeded)


def _folded(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """A copy with these (layer, batch norm) made one, under all the names that the norm goes by."""
    folded = copy.deepcopy(model).eval()
    for layer_name, norm_name in pairs:
        norm = folded.get_submodule(norm_name)
        _fold(folded.get_submodule(layer_name), norm)
        for parent in list(folded.modules()):
            for name in [name for name, child in parent._modules.items() if child is norm]:
                parent._modules[name] = nn.Identity()
    return folded


def _pairs(model: nn.Module, traced: Record) -> Iterator[tuple[str, str]]:
    """(layer, batch norm) module names that fold exactly."""
    workload, modules = traced.workload, traced.modules
    runs = Counter(layer.module for layer in workload.layers)
    norms = Counter(modules[node.name] for node in workload.nodes if node.kind == "norm")
    keys = Counter(layer.weight.key for layer in workload.layers if layer.weight)
    layers = {layer.name: layer for layer in workload.layers}
    for node in workload.nodes:
        layer, norm = layers.get(traced.normalized.get(node.name, "")), modules[node.name]
        if (
            layer is not None
            and layer.weight is not None
            and layer.name == modules[layer.name]
            and node.inputs == (layer.name,)
            and workload.consumers[layer.name] == (node.name,)
            and layer.name not in workload.outputs
            and isinstance(model.get_submodule(layer.name), _FOLDABLE)
            and _is_plain_norm(model.get_submodule(norm))
            and runs[layer.name] == norms[norm] == keys[layer.weight.key] == 1
        ):
            yield layer.name, norm


def _norms(traced: Record) -> int:
    return sum(node.kind == "norm" for node in traced.workload.nodes)


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether it does what torch's batch norm does with its running statistics, and nothing else."""
    is_batch_norm = any(isinstance(module, cls) and type(module).forward is cls.forward for cls in _BATCH_NORMS)
    return is_batch_norm and module.running_mean is not None


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    """w' = w g / sqrt(var + eps), b' = (b - mean) g / sqrt(var + eps) + beta (Jacob et al. 2018), in float64."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    factor = gain / torch.sqrt(var + norm.eps)
    weight, trainable = layer.weight, layer.weight.requires_grad
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    layer.weight = nn.Parameter(_scaled(layer, weight.double(), factor).to(weight.dtype), trainable)
    layer.bias = nn.Parameter(((bias - mean) * factor + shift).to(weight.dtype), trainable)


def _scaled(layer: Any, weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with each output channel multiplied by its factor."""
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # (in, out / groups, ...): output channel g * (out / groups) + j comes from the g-th part of the inputs.
        parts = weight.reshape(layer.groups, -1, *weight.shape[1:])
        per_part = factor.reshape(layer.groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
        return (parts * per_part).reshape(weight.shape)
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
