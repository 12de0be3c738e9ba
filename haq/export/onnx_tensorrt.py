"""What a config becomes in TensorRT 11, which takes symmetric int8, and 4-bit weights of products in blocks only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from haq.nn.exportable import Exportable
from haq.nn.lsq import Stored
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, largest_code
from haq.nn.tuned import operands
from haq.precision import FORMATS, GROUPS, Assignment, Precision
from haq.workload import LayerSpec

INT8 = FORMATS["int8"]
MIDDLE = 128
"""The unsigned code of a signed int8 zero."""


@dataclass(frozen=True, eq=False)
class Changed:
    """A config as TensorRT takes it. notes: layer -> what it loses, or how it is written."""

    what: Exportable
    notes: Mapping[str, str]


def for_tensorrt(what: Exportable) -> Changed:
    """The config in what TensorRT executes; `what.simulated()` of it computes what the artifact does.

    Activations of 4 or 8 bits become int8 with zero-point 0 and the smallest scale that holds the calibrated range;
    those of 16-bit integers become fp16. 4-bit weights stay where they meet float activations in a matrix product, in
    blocks; elsewhere their codes are stored in 8 bits. A weight with groups that cannot stay is dequantized.
    """
    notes: dict[str, list[str]] = {name: [] for name in what.workload.layer_names}
    weights: dict[str, Stored] = dict(what.numbers.weights)
    quantizers = {}
    executed = {}
    for layer in what.workload.layers:
        asked = what.executed.precision(layer.name)
        activation = asked.activation
        if activation.is_integer and activation.bits == 16:
            activation = FORMATS["fp16"]
            notes[layer.name].append("16-bit integer activations become fp16")
        elif activation.is_integer and not activation.per_token:
            activation = INT8
            for operand in operands(layer, asked):
                quantizers[operand], note = _symmetric(what.numbers.quantizers[operand])
                notes[layer.name] += [note] if note else []
        weight = asked.weight
        if layer.weight is not None:
            stored, note = _weight(layer, what.numbers.weights[layer.weight.key], Precision(weight, activation))
            weights[layer.weight.key] = stored
            if isinstance(stored, QuantizedWeight):
                weight = stored.format
            elif weight.is_integer:
                weight = FORMATS["fp32"]
            notes[layer.name] += [note] if note else []
        elif asked.weight == asked.activation:
            weight = activation
        executed[layer.name] = Precision(weight, activation)
    numbers = replace(what.numbers, weights=weights, quantizers=quantizers)
    changed = replace(what, executed=Assignment.of(executed), numbers=numbers)
    return Changed(changed, {name: "; ".join(lines) for name, lines in notes.items() if lines})


def _symmetric(quantizer: ActivationQuantizer) -> tuple[ActivationQuantizer, str]:
    """The same range around zero in 8 bits: codes -127 ... 127 of the larger side."""
    top = largest_code(quantizer.format)
    low, high = quantizer.scale * quantizer.zero_point, quantizer.scale * (top - quantizer.zero_point)
    scale = float(torch.tensor(max(low, high) / INT8.largest, dtype=torch.float32))
    wider = scale / quantizer.scale
    note = f"range {-low:.4g} to {high:.4g} made symmetric: steps {wider:.2f} times as wide" if wider > 1.005 else ""
    return ActivationQuantizer(INT8, scale, MIDDLE), note


def _weight(layer: LayerSpec, stored: Stored, precision: Precision) -> tuple[Stored, str]:
    """The weight as it is stored, and why it is not as asked."""
    if not isinstance(stored, QuantizedWeight) or stored.format.bits == 8:
        return stored, ""
    if stored.format.bits == 16:
        return stored.dequantize(), "16-bit integer weights become floats"
    is_product = layer.kind == "linear" and stored.codes.dim() == 2
    if is_product and not precision.activation.is_integer:
        return _in_blocks(stored)
    why = "4-bit weights multiply floats only" if is_product else "4-bit weights are for matrix products only"
    if stored.format.group is not None:
        return stored.dequantize(), f"{why}, and 8-bit weights have no groups: dequantized"
    return replace(stored, format=INT8), f"{why}: the same codes in 8 bits"


def _in_blocks(stored: QuantizedWeight) -> tuple[QuantizedWeight, str]:
    """Scales per channel, repeated for blocks of inputs; unchanged where it has groups."""
    if stored.format.group is not None:
        return stored, ""
    depth = stored.codes.numel() // len(stored.scales)
    block = next((size for size in sorted(GROUPS, reverse=True) if depth % size == 0), None)
    if block is None:
        return replace(stored, format=INT8), f"{depth} inputs are no multiple of a block: the same codes in 8 bits"
    scales = stored.scales[:, None].repeat(1, depth // block)
    return replace(stored, format=FORMATS[f"int4g{block}"], scales=scales), "the channel's scale repeated by block"
