"""Undoes one cause of harm at a time in a network under diagnosis, one function for each kind of repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from haq.diagnose.evidence import Evidence, OperandEvidence
from haq.diagnose.finding import Change, Repair
from haq.errors import InputError, lookup
from haq.nn.diagnosis.equalizing import equalized_input
from haq.nn.diagnosis.reestimation import reestimated
from haq.nn.diagnosis.requantize import (
    to_nearest,
    with_bias,
    with_bias_of_model,
    with_range,
    with_scales_refitted,
    with_weight,
)
from haq.nn.diagnosis.subject import Subject
from haq.nn.quantizers import QuantizedWeight
from haq.nn.task import Inputs
from haq.nn.tuned import bias_key, part
from haq.workload import LayerSpec

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Look:
    """What repairs are made from: the looked-at batches, and what they showed of the network under diagnosis."""

    batches: tuple[Inputs, ...] = field(repr=False)
    evidence: Evidence = field(repr=False)


def repaired(subject: Subject, change: Change, look: Look) -> Subject:
    """The subject after all repairs of a change, in their order; raised layers are the caller's.

    Raises InputError on an unknown kind, an unknown layer, and on a repair that the layer does not take.
    """
    for repair in change.repairs:
        subject = lookup(REPAIRS, repair.kind, "repair")(subject, repair, look)
    return subject


def clip(subject: Subject, repair: Repair, look: Look) -> Subject:
    """The operands' ranges are those with the least squared error on the looked-at samples."""
    found = [o for o in _operands(subject, repair, look) if (o.layer, o.index) in subject.numbers.quantizers]
    if not found and repair.layer:
        raise _not_here(repair, "an operand with a static range")
    for operand in found:
        subject = with_range(subject, (operand.layer, operand.index), operand.best_range)
    return subject


def recalibrate(subject: Subject, repair: Repair, look: Look) -> Subject:
    """The same, since the looked-at samples are served: calibration on them with the mse observer's criterion."""
    return clip(subject, repair, look)


def per_channel(subject: Subject, repair: Repair, look: Look) -> Subject:
    """The weight rounded to nearest with a scale per output channel (or group), and FP32's bias."""
    for layer in _layers(subject, repair):
        assert layer.weight is not None
        stored = subject.numbers.weights[layer.weight.key]
        if isinstance(stored, QuantizedWeight):
            exact = part(subject.model, layer.weight.key)
            made = to_nearest(exact, stored.format, stored.channel_axis)
            subject = with_bias_of_model(with_weight(subject, layer, made), layer)
    return subject


def rescale(subject: Subject, repair: Repair, look: Look) -> Subject:
    """Fresh fp32 scales for the channels whose own cannot be held in their format; codes stay."""
    for layer in _layers(subject, repair):
        assert layer.weight is not None
        stored = subject.numbers.weights[layer.weight.key]
        if isinstance(stored, QuantizedWeight):
            exact = part(subject.model, layer.weight.key)
            subject = with_weight(subject, layer, with_scales_refitted(stored, exact, subject.scale_format))
    return subject


def bias(subject: Subject, repair: Repair, look: Look) -> Subject:
    """The bias without the mean error that the layer, alone on FP32's inputs, had in each channel."""
    for layer in _layers(subject, repair):
        key, seen = bias_key(subject.model, layer), look.evidence.layers[layer.name].output
        if key is None:
            if repair.layer:
                raise _not_here(repair, "a layer with a bias")
        elif seen is not None:
            now = subject.numbers.biases[key]
            subject = with_bias(subject, layer, now - torch.from_numpy(seen.mean_error).to(now))
    return subject


def equalize(subject: Subject, repair: Repair, look: Look) -> Subject:
    """What the layer reads is divided per channel, and its weight multiplied: ranges move into the weight."""
    if not repair.layer:
        raise _not_here(repair, "the name of one layer")
    (layer,) = _layers(subject, repair)
    operands = look.evidence.layers[layer.name].operands
    if not operands:
        raise _not_here(repair, "a layer that reads numbers")
    return equalized_input(subject, layer, operands[0], look.batches)


def reestimate(subject: Subject, repair: Repair, look: Look) -> Subject:
    """All channels get FP32's mean and deviation back; always of the whole network."""
    return reestimated(subject, look.batches)


def wide_accumulator(subject: Subject, repair: Repair, look: Look) -> Subject:
    """Sums are as wide as they need to be."""
    return subject.with_(accumulators=_without(subject.accumulators, repair))


def own_scale(subject: Subject, repair: Repair, look: Look) -> Subject:
    """The layer's result keeps a scale of its own at the join."""
    return subject.with_(join_steps=_without(subject.join_steps, repair))


def unforce(subject: Subject, repair: Repair, look: Look) -> Subject:
    """The op behind the layer runs in float."""
    return subject.with_(forced_steps=_without(subject.forced_steps, repair))


REPAIRS: Mapping[str, Callable[[Subject, Repair, Look], Subject]] = {
    "clip": clip,
    "recalibrate": recalibrate,
    "per_channel": per_channel,
    "rescale": rescale,
    "bias": bias,
    "equalize": equalize,
    "reestimate": reestimate,
    "wide_accumulator": wide_accumulator,
    "own_scale": own_scale,
    "unforce": unforce,
}
"""(the subject, what to undo, the look) -> a new subject; tensors are never written to."""


def _without(named: Mapping[str, T], repair: Repair) -> dict[str, T]:
    """The entries but the layer's; none where the repair is of the whole network."""
    return {name: value for name, value in named.items() if repair.layer and name != repair.layer}


def _operands(subject: Subject, repair: Repair, look: Look) -> Iterator[OperandEvidence]:
    names = [repair.layer] if repair.layer else list(subject.workload.layer_names)
    for name in names:
        for operand in lookup(look.evidence.layers, name, "layer").operands:
            if repair.index is None or operand.index == repair.index:
                yield operand


def _layers(subject: Subject, repair: Repair) -> list[LayerSpec]:
    """The layer, or all with a weight; raises InputError on a layer that is not there or has no weight."""
    named = {layer.name: layer for layer in subject.workload.layers}
    if not repair.layer:
        return [layer for layer in named.values() if layer.weight is not None]
    layer = lookup(named, repair.layer, "layer")
    if layer.weight is None:
        raise _not_here(repair, "a layer with a weight")
    return [layer]


def _not_here(repair: Repair, expected: str) -> InputError:
    return InputError("the repair does not apply here", where=repair.layer, got=repair.kind, expected=expected)
