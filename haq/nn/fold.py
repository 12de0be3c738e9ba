"""Folds batch normalization into the layer before it, found through the traced graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.trace import Example, trace_modules
from haq.workload import LayerSpec, Workload

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
    folded = copy.deepcopy(model).eval()
    workload, modules = trace_modules(folded, example, name=type(model).__name__)
    for layer_name, norm_name in list(_pairs(folded, workload, modules)):
        _fold(folded.get_submodule(layer_name), folded.get_submodule(norm_name))
        parent, _, child = norm_name.rpartition(".")
        setattr(folded.get_submodule(parent), child, nn.Identity())
    return folded


def _pairs(model: nn.Module, workload: Workload, modules: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(layer, batch norm) module names that fold exactly."""
    nodes = {node.name: node for node in workload.nodes}
    runs = [modules[node.name] for node in workload.nodes]
    keys = [layer.weight.key for layer in workload.layers if layer.weight]
    for node in workload.nodes:
        norm = modules[node.name]
        if node.kind != "norm" or len(node.inputs) != 1 or not _is_tracking_norm(model.get_submodule(norm)):
            continue
        layer = nodes.get(node.inputs[0])
        if (
            isinstance(layer, LayerSpec)
            and layer.weight is not None
            and layer.name == modules[layer.name]
            and isinstance(model.get_submodule(layer.name), _FOLDABLE)
            and workload.consumers[layer.name] == (node.name,)
            and layer.name not in workload.outputs
            and runs.count(layer.name) == runs.count(norm) == keys.count(layer.weight.key) == 1
        ):
            yield layer.name, norm


def _is_tracking_norm(module: nn.Module) -> bool:
    return isinstance(module, _BATCH_NORMS) and module.running_mean is not None


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
