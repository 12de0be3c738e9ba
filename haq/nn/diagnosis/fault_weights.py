"""Plants faults in what is stored of a layer: weights, their scales, and biases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from haq.nn.diagnosis.looked import batches_of, calibrated_anew, given, spec_of
from haq.nn.diagnosis.rescaling import channels, check_same, divided, octaves, pair_of
from haq.nn.diagnosis.subject import Subject
from haq.nn.ptq.ranges import minmax_grid, mse
from haq.nn.quantizers import QuantizedWeight
from haq.nn.tuned import bias_key, part
from haq.precision import FORMATS, Format
from haq.space import block_of

SMALLEST_BLOCK = 3
"""Layers with weights that make a block: of fewer, single effects are no part of a larger whole."""


def channel_imbalance(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """The layer's channels are scaled down by powers of two to 1 / strength, log-uniformly, and its readers undo it.

    The layer's weight is stored with the best one scale for all channels, as a target without per-channel weights does.
    Readers divide what they read, exactly, before they quantize it, as SmoothQuant has them do: undone in their weights
    the factors would harm those and their input as much as this weight. Attention products on the way do read channels
    of very different range with one scale, the best for them (`touched` names them).
    """
    batch = batches_of(subject, layer)[0]
    pair = pair_of(subject.model, subject.workload, batch, layer)
    model = divided(subject.model, subject.workload, pair, octaves(channels(spec_of(subject, layer)), strength, rng))
    check_same(subject.model, model, batch, layer)
    made = _one_scale(subject.with_(model=model), layer)
    return calibrated_anew(made, pair.products) if pair.products else made


def biased_error(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """Every output channel's bias is off by `strength` standard deviations of the channel, up or down at random.

    It stands for all that shifts means: sums cut off instead of rounded, a bias in a coarse integer format, a wrong
    zero-point term. The deviation is FP32's on calibration data.
    """
    key = bias_key(subject.model, spec_of(subject, layer))
    assert key is not None, "places() lists layers with a bias"
    bias = subject.numbers.biases[key]
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(bias))).to(bias)
    biases = {**subject.numbers.biases, key: bias + strength * signs * given(subject, layer).deviation.to(bias)}
    return subject.with_(numbers=replace(subject.numbers, biases=biases))


def degenerate_scale(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """A share `strength` of the output channels, at least one, has scales that became zero in fp16; biases stay."""
    spec = spec_of(subject, layer)
    assert spec.weight is not None
    stored = subject.numbers.weights[spec.weight.key]
    assert isinstance(stored, QuantizedWeight), "places() lists integer weights"
    count = len(stored.scales)
    lost = torch.from_numpy(rng.choice(count, size=max(1, round(strength * count)), replace=False))
    scales = stored.scales.clone()
    scales[lost] = 0.0
    weights = {**subject.numbers.weights, spec.weight.key: replace(stored, scales=scales)}
    return subject.with_(numbers=replace(subject.numbers, weights=weights), scale_format=FORMATS["fp16"])


def error_accumulation(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """Every layer of the block multiplies by 1 - strength of its weight: little each, and much in a row."""
    weights = dict(subject.numbers.weights)
    for key in {spec_of(subject, name).weight.key for name in block(subject, layer)}:  # type: ignore[union-attr]
        stored = weights[key]
        if isinstance(stored, QuantizedWeight):
            weights[key] = replace(stored, scales=stored.scales * (1 - strength))
        else:
            weights[key] = stored * (1 - strength)
    return subject.with_(numbers=replace(subject.numbers, weights=weights))


def block(subject: Subject, layer: str) -> tuple[str, ...]:
    """The layers with weights of the smallest part of the network with at least three of them that `layer` lies in.

    A residual block or transformer layer, or of too small ones the stage; empty where only the whole network is left.
    """
    weighted = [spec.name for spec in subject.workload.layers if spec.weight is not None and spec.kind != "embedding"]
    prefix = block_of(layer)
    while prefix and prefix != layer:
        found = tuple(name for name in weighted if name.startswith((f"{prefix}.", f"{prefix}/")))
        if len(found) >= SMALLEST_BLOCK:
            return found if len(found) <= len(weighted) // 2 else ()
        prefix = prefix.rpartition(".")[0]
    return ()


def one_scale(weight: Tensor, fmt: Format, channel_axis: int) -> QuantizedWeight:
    """The weight rounded to nearest with the one scale of least squared error, written once per channel."""
    rows = weight.detach().float().reshape(1, 1, -1)
    grid = mse(rows, None, minmax_grid(rows, int(fmt.largest), rows.shape[2]))
    scales = grid.scales.reshape(1).repeat(weight.shape[channel_axis])
    return QuantizedWeight(fmt, grid.codes(rows).reshape(weight.shape), scales, channel_axis)


def _one_scale(subject: Subject, layer: str) -> Subject:
    """The layer's bias as the subject's model has it, and its weight to nearest with one scale for all channels."""
    spec = spec_of(subject, layer)
    assert spec.weight is not None
    numbers, weight = subject.numbers, part(subject.model, spec.weight.key)
    stored = one_scale(weight, subject.executed.precision(layer).weight, spec.weight.channel_axis)
    weights = {**numbers.weights, spec.weight.key: stored}
    key = bias_key(subject.model, spec)
    biases = numbers.biases if key is None else {**numbers.biases, key: part(subject.model, key)}
    return subject.with_(numbers=replace(numbers, weights=weights, biases=biases))
