"""Divides what layers read per channel and multiplies their weights as much: a network of the same function in FP32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.ptq.smoothquant import divide
from haq.nn.sharing import shared_copy


def smoothing_of(changed: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """Module -> what its input is multiplied by in `changed` beyond `original`, where that is anything."""
    found = {}
    for name, module in changed.named_modules():
        if not isinstance(now := getattr(module, "smoothing", None), Tensor):
            continue
        before = getattr(original.get_submodule(name), "smoothing", None)
        ratio = now if before is None else now / before
        if not bool((ratio == 1).all()):
            found[name] = ratio.detach().clone()
    return found


@torch.no_grad()
def with_smoothing(model: nn.Module, smoothing: Mapping[str, Tensor]) -> nn.Module:
    """A network in which the inputs of linear layers and convolutions are multiplied so, and their weights divided.

    smoothing: module -> (inputs,) or (inputs, 1, ...) factors; powers of two round nothing. The model stays as it is.
    """
    if not smoothing:
        return model
    made = shared_copy(model)
    for name, factors in smoothing.items():
        module: Any = made.get_submodule(name)
        weight, groups = module.weight.detach(), getattr(module, "groups", 1)
        parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        whole = (parts / factors.reshape(groups, 1, -1, 1)).reshape(weight.shape)
        module._parameters["weight"] = nn.Parameter(whole, requires_grad=False)
        if isinstance(getattr(module, "smoothing", None), Tensor):
            module.smoothing = module.smoothing * factors
        else:
            module.register_buffer("smoothing", factors.clone())
            module.register_forward_pre_hook(divide)
    return made
