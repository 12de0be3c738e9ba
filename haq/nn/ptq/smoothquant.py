"""SmoothQuant: divide the input channels of linear layers by their outliers and multiply the weights by them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.instrument import Onlooker, instrument_ops
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, forward
from haq.workload import LayerSpec, Workload

log = logging.getLogger(__name__)
ALPHA = 0.5
"""How much of the outliers moves into the weights; the paper's value for most networks."""
SMALLEST_FACTOR = 1e-3


@torch.no_grad()
def smoothed(model: nn.Module, workload: Workload, batches: Sequence[Inputs], *, alpha: float = ALPHA) -> nn.Module:
    """A copy of the model that computes the same with smoother inputs of its linear layers (Xiao et al. 2023, eq. 4).

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha); the input is divided by s and the weight's column j multiplied by it.
    Layers that read the same tensor (query, key, value) share s. The division stands in front of the layer, where a
    device makes it part of quantizing the input: a post-norm transformer (BERT) has no norm of its own to fold it into,
    since the shortcut reads the same output.
    """
    modules = dict(model.named_modules())
    readers: dict[str, list[LayerSpec]] = {}
    for layer in workload.layers:
        module = modules.get(layer.name)
        if layer.kind == "linear" and isinstance(module, nn.Linear) and f"{layer.name}@1" not in workload.layer_names:
            readers.setdefault(layer.inputs[0], []).append(layer)
    largest = _largest_inputs(model, workload, batches, [layer.name for group in readers.values() for layer in group])
    made = shared_copy(model)
    for group in readers.values():
        for width in {modules[layer.name].in_features for layer in group}:
            names = [layer.name for layer in group if modules[layer.name].in_features == width]
            _smooth([made.get_submodule(name) for name in names], largest[names[0]], alpha)
    log.info("smoothed the inputs of %d linear layers", sum(map(len, readers.values())))
    return made


def _smooth(layers: Sequence[Any], largest: Tensor, alpha: float) -> None:
    weights = torch.stack([layer.weight.detach().abs().amax(dim=0) for layer in layers]).amax(dim=0)
    alive = (largest > 0) & (weights > 0)
    s = torch.where(alive, largest.pow(alpha) / weights.clamp(min=SMALLEST_FACTOR).pow(1 - alpha), 1.0)
    s = s.clamp(min=SMALLEST_FACTOR)
    for layer in layers:
        layer._parameters["weight"] = nn.Parameter(layer.weight.detach() * s, requires_grad=False)
        layer.register_buffer("smoothing", 1 / s)
        layer.register_forward_pre_hook(divide)


def divide(module: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """The hook of a layer with a buffer `smoothing`: its input is multiplied by that before all else."""
    return (args[0] * module.smoothing, *args[1:])


def _largest_inputs(
    model: nn.Module, workload: Workload, batches: Sequence[Inputs], layers: Sequence[str]
) -> Mapping[str, Tensor]:
    """Layer -> (in features,) the largest magnitude of every input channel over the data."""
    probe = _Largest()
    observed = shared_copy(model)
    instrument_ops(observed, workload, probe, frozenset(layers))
    with torch.inference_mode():
        for inputs in batches:
            forward(observed, inputs)
    with torch.inference_mode(False):
        return {name: value.clone() for name, value in probe.found.items()}


class _Largest(Onlooker):
    """The probe that keeps the largest magnitudes. It changes as the model runs."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        here = x.detach().abs().flatten(0, -2).amax(dim=0)
        self.found[layer] = torch.maximum(self.found[layer], here) if layer in self.found else here
        return x
