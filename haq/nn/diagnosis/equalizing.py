"""Moves the ranges of the channels that a layer reads into its weight, and divides what it reads by as much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haq.diagnose.evidence import OperandEvidence, Range
from haq.errors import InputError
from haq.nn.diagnosis.operands import OperandSums, Rounding
from haq.nn.diagnosis.requantize import to_nearest, with_bias_of_model, with_range, with_weight
from haq.nn.diagnosis.subject import Subject
from haq.nn.instrument import Onlooker, instrument_ops
from haq.nn.ptq.smoothquant import ALPHA, divide
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, forward
from haq.workload import LayerSpec

LARGEST_FACTOR = 2.0**12
"""A channel is divided by at most this, and by at least its reciprocal: more is a dead channel."""


@torch.no_grad()
def equalized_input(subject: Subject, layer: LayerSpec, seen: OperandEvidence, batches: Sequence[Inputs]) -> Subject:
    """The subject with the input of one linear layer or convolution divided per channel, and its weight multiplied.

    s_j = max|x_j|^a / max|w_j|^(1 - a), scaled to a geometric mean of 1 (Xiao et al. 2023, eq. 4, a = 0.5); a = 1 of
    depthwise convolutions, whose weight scales take up any factor. FP32 computes the same. The division stands before
    the layer, where a device makes it part of what writes the tensor, or of quantizing it. The weight is rounded to
    nearest and the range chosen anew on the batches. Raises InputError for layers whose input it cannot divide.
    """
    module, key = _module(subject, layer), f"{layer.name}.weight"
    factors = _factors(seen, _by_input(layer, module.weight), layer)
    made = shared_copy(subject.model)
    reader: Any = made.get_submodule(layer.name)
    spread = layer.groups if layer.kind.startswith("conv") else 1
    parts = module.weight.detach().reshape(spread, len(module.weight) // spread, module.weight.shape[1], -1)
    weight = (parts * factors.reshape(spread, 1, -1, 1)).reshape(module.weight.shape)
    reader._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    undo = (1 / factors).reshape(-1, *[1] * (len(layer.input_shapes[0]) - 1 if layer.kind.startswith("conv") else 0))
    if hasattr(reader, "smoothing"):
        reader.smoothing = reader.smoothing * undo
    else:
        reader.register_buffer("smoothing", undo)
        reader.register_forward_pre_hook(divide)
    changed = subject.with_(model=made)
    fmt = subject.executed.precision(layer.name).weight
    assert layer.weight is not None
    assert layer.weight.key == key
    stored = to_nearest(weight, fmt, layer.weight.channel_axis) if fmt.is_integer else weight
    changed = with_bias_of_model(with_weight(changed, layer, stored), layer)
    if (layer.name, 0) not in subject.numbers.quantizers:
        return changed
    return with_range(changed, (layer.name, 0), best_range(changed, layer, batches))


def best_range(subject: Subject, layer: LayerSpec, batches: Sequence[Inputs]) -> Range:
    """The range of the layer's first operand that loses least on the batches, in FP32."""
    quantizer = subject.numbers.quantizers[layer.name, 0]
    probe = _One(OperandSums(layer, 0, Rounding(quantizer.format, quantizer)))
    model = shared_copy(subject.model)
    instrument_ops(model, subject.workload, probe, frozenset([layer.name]))
    with torch.inference_mode():
        for inputs in batches:
            forward(model, inputs)
    return probe.sums.evidence(None).best_range


def _module(subject: Subject, layer: LayerSpec) -> Any:
    """The layer's module; raises InputError where it is no plain one that runs once."""
    module = dict(subject.model.named_modules()).get(layer.name)
    keys = [other.weight.key for other in subject.workload.layers if other.weight is not None]
    plain = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.weight is not None
    if not plain or keys.count(f"{layer.name}.weight") != 1:
        raise InputError(
            "the channels that this layer reads cannot be moved into its weight", where=layer.name,
            got=layer.kind, expected="a linear layer or convolution with a weight of its own that runs once",
        )  # fmt: skip
    return module


def _by_input(layer: LayerSpec, weight: Tensor) -> Tensor:
    """(inputs,) the largest magnitude that multiplies each input channel."""
    groups = layer.groups if layer.kind.startswith("conv") else 1
    parts = weight.detach().reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return parts.abs().amax(dim=(1, 3)).flatten()


def _factors(seen: OperandEvidence, weights: Tensor, layer: LayerSpec) -> Tensor:
    """(inputs,) powers of two, so that dividing rounds nothing, near the factors of SmoothQuant."""
    largest = torch.from_numpy(np.asarray(seen.channel_largest)).to(weights)
    if len(largest) != len(weights):
        raise InputError(
            "the channels seen are not those of the weight", where=layer.name, got=len(largest),
            expected=f"{len(weights)} channels",
        )  # fmt: skip
    alpha = 1.0 if layer.groups > 1 and layer.groups == len(weights) else ALPHA
    alive = (largest > 0) & (weights > 0)
    octaves = alpha * largest.clamp(min=1e-30).log2() - (1 - alpha) * weights.clamp(min=1e-30).log2()
    octaves = torch.where(alive, octaves, 0.0)
    centred = (octaves - octaves[alive].mean()).round() if bool(alive.any()) else octaves
    return torch.where(alive, torch.exp2(centred), 1.0).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)


class _One(Onlooker):
    """The probe that looks at one operand. It changes as the model runs: its sums fill."""

    def __init__(self, sums: OperandSums) -> None:
        self.sums = sums

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        if index == self.sums.index:
            self.sums.add(x.detach())
        return x
