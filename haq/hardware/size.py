"""How many bytes an assignment stores: packed weights, scales, zero-points, biases and what stays unquantized."""

from __future__ import annotations

import math

from haq.precision import FORMATS, Assignment, Format, Precision
from haq.workload import LayerSpec, WeightSpec, Workload

SCALE_BYTES = 4
"""A scale is kept in fp32."""

UNQUANTIZED_BYTES = 4
"""Norms, positions and other parameters of no layer stay fp32."""


def size_bytes(workload: Workload, executed: Assignment) -> int:
    """Bytes of the model as stored, for an executed assignment; a weight that layers share in one format is one copy.

    A ResNet-18 of 11.69 M parameters, batch norm folded, is 46.7 MB in fp32: four bytes each.
    """
    precisions = {layer: executed.precision(layer.name) for layer in workload.layers}
    copies = {
        (layer.weight.key, p.weight.name): weight_bytes(layer.weight, p.weight)
        for layer, p in precisions.items()
        if layer.weight is not None
    }
    biases = {(layer.module, p.activation.bits): bias_bytes(layer, p) for layer, p in precisions.items()}
    states = sum(state_bytes(layer, p) for layer, p in precisions.items())
    unquantized = workload.unquantized_parameters * UNQUANTIZED_BYTES
    return sum(copies.values()) + sum(biases.values()) + states + unquantized


def fp32_size_bytes(workload: Workload) -> int:
    """The baseline: every parameter in four bytes, tied ones once."""
    fp32 = Precision(FORMATS["fp32"], FORMATS["fp32"])
    return size_bytes(workload, Assignment.uniform(workload.layer_names, fp32))


def weight_bytes(weight: WeightSpec, fmt: Format) -> int:
    """The packed weight and its scales.

    int4 packs two values into a byte, rounded up per tensor; an integer weight has one scale per output channel
    (an embedding: per row), or one for every group of a channel's elements that is begun.
    (64, 3, 7, 7) in int4: 9,408 / 2 + 64 x 4 = 4,960 bytes. (768, 768) in int4g32: 294,912 + 768 x 24 x 4 = 368,640
    bytes, five bits a weight.
    """
    packed = math.ceil(weight.elements * fmt.bits / 8)
    scales = weight.channels * (1 if fmt.group is None else math.ceil(weight.depth / fmt.group))
    return packed + (scales * SCALE_BYTES if fmt.is_integer else 0)


def bias_bytes(layer: LayerSpec, precision: Precision) -> int:
    """A bias is int32 beside integer activations, fp32 beside fp32, and two bytes beside 16-bit floats."""
    activation = precision.activation
    return layer.bias_elements * (2 if activation.bits == 16 and not activation.is_integer else 4)


def state_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Scale and zero-point of each static integer operand: one for a layer with a weight, two for an attention product.

    The operand of an embedding is an index and has neither; scales per token are found anew in every inference.
    """
    activation = precision.activation
    if not activation.is_integer or activation.per_token or layer.kind == "embedding":
        return 0
    operands = len(layer.input_shapes) if layer.weight is None else 1
    return operands * (SCALE_BYTES + math.ceil(activation.bits / 8))
