"""Cross-layer equalization: give the channels between two layers the ranges that both layers' weights quantize best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.ptq.neighbours import Neighbours, neighbours
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, first_samples, forward, logits_of
from haq.nn.trace import trace_record

log = logging.getLogger(__name__)
LARGEST_FACTOR = 1e4
"""A channel is scaled by at most this, and by at least its reciprocal."""
TOLERANCE = 1e-3
"""How much of the output's largest magnitude a step may move it; fp32 rounding moves it by 1e-6."""


class ChannelClip(nn.Module):
    """ReLU6 of a channel that was scaled by s: min(max(x, 0), 6 s). ceilings: (channels,)."""

    ceilings: Tensor

    def __init__(self, ceilings: Tensor) -> None:
        super().__init__()
        self.register_buffer("ceilings", ceilings)

    def forward(self, x: Tensor) -> Tensor:
        ceilings = self.ceilings.reshape(-1, *[1] * (x.dim() - 2)) if x.dim() > 2 else self.ceilings
        return torch.minimum(x.clamp(min=0), ceilings)


SAMPLES = 4
"""Samples on which a step is checked."""


@torch.no_grad()
def equalized(model: nn.Module, batches: Sequence[Inputs], *, sweeps: int = 3) -> nn.Module:
    """A copy of a folded model in eval mode that computes the same with equalized weights (Nagel et al. 2019, eq. 11).

    s_c = sqrt(r1_c / r2_c) divides producer channel c and multiplies the consumers' input channel c; r1 and r2 are the
    largest magnitudes there. ReLU6 between them becomes a clip at 6 / s. Sweeps over all neighbours until the ranges
    settle. Neighbours that would change the output (a network that reads the channels in another order) are left.
    """
    few = first_samples(batches[0], SAMPLES)
    made = shared_copy(model)
    exact = logits_of(forward(made, few))
    chosen = []
    for pair in neighbours(made, trace_record(made, few, name=type(model).__name__)):
        trial = shared_copy(made)
        _scale(trial, pair)
        difference = (logits_of(forward(trial, few)) - exact).abs().amax()
        if bool(difference <= TOLERANCE * exact.abs().amax()):
            made = trial
            chosen.append(pair)
    log.info("cross-layer equalization of %d layers and their readers", len(chosen))
    for _ in range(sweeps - 1):
        for pair in chosen:
            _scale(made, pair)
    return made


def _scale(model: nn.Module, pair: Neighbours) -> None:
    """Equalize the neighbours in place; parameters are replaced, not written to."""
    producer, *consumers = (_layer(model, name) for name in (pair.producer, *pair.consumers))
    given = producer.weight.detach().flatten(1).abs().amax(dim=1)
    taken = torch.stack([_by_group(layer).abs().amax(dim=(1, 3)).flatten() for layer in consumers]).amax(dim=0)
    alive = (given > 0) & (taken > 0)
    s = torch.where(alive, (given / taken.clamp(min=torch.finfo(taken.dtype).tiny)).sqrt(), torch.ones_like(given))
    s = s.clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    _replace(producer, "weight", producer.weight / s.reshape(-1, *[1] * (producer.weight.dim() - 1)))
    if producer.bias is not None:
        _replace(producer, "bias", producer.bias / s)
    for layer in consumers:
        parts = _by_group(layer)
        scaled = parts * s.reshape(parts.shape[0], 1, parts.shape[2], 1)
        _replace(layer, "weight", scaled.reshape(layer.weight.shape))
    for name in pair.between:
        _clip(model, name, s)


def _layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _by_group(layer: Any) -> Tensor:
    """(groups, outputs of a group, inputs of a group, kernel elements) of a layer's weight."""
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    parts: Tensor = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts


def _replace(layer: Any, name: str, value: Tensor) -> None:
    layer._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)


def _clip(model: nn.Module, name: str, s: Tensor) -> None:
    """Give a ReLU6 the ceiling that its scaled channels have; other activations stay."""
    module = model.get_submodule(name)
    if isinstance(module, nn.ReLU6):
        model.set_submodule(name, ChannelClip(6 / s))
    elif isinstance(module, ChannelClip):
        module.ceilings = module.ceilings / s
