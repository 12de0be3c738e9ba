"""Which layers' integer sums may not fit what a device sums them in, by its profile alone."""

from __future__ import annotations

from collections.abc import Mapping

from haq.hardware.legalize import arithmetic_of, executable
from haq.hardware.machine import PAIRS, accumulator_bits
from haq.hardware.schema import HardwareProfile
from haq.precision import Assignment, Precision
from haq.workload import LayerSpec, Workload

LARGEST_PAIR = 2**15 - 1


def accumulators_of(profile: HardwareProfile, workload: Workload, executed: Assignment) -> Mapping[str, str]:
    """Layer -> the accumulator of the arithmetic that it runs on, where that may not hold every sum.

    executed: layer -> Precision. Left out: layers without sums of static codes (floats, scales per group or token,
    embeddings, attention products), those whose largest possible sum fits, and those that the profile does not execute
    as they are. `int16-pairs` are of linear layers and 2-d convolutions; depthwise ones multiply in 32 bits
    (ONNX Runtime, MlasConvSymDepthwise).
    """
    found = {}
    for layer in workload.layers:
        precision = executed.precision(layer.name)
        if not _sums_codes(layer, precision) or precision not in executable(profile, layer):
            continue
        named = profile.arithmetic[arithmetic_of(profile, layer, precision)].accumulator
        if not _always_fits(layer, precision, named):
            found[layer.name] = named
    return found


def has_one_input_per_output(layer: LayerSpec) -> bool:
    """Whether the layer is a depthwise convolution with one filter per channel."""
    return layer.weight is not None and layer.weight.shape[1] == 1 and layer.groups == layer.weight.shape[0]


def _sums_codes(layer: LayerSpec, precision: Precision) -> bool:
    if layer.weight is None or layer.gemm is None or precision != precision.plain:
        return False
    return precision.weight.is_integer and precision.activation.is_integer


def _always_fits(layer: LayerSpec, precision: Precision, named: str) -> bool:
    """Whether the largest codes of both signs fit: codes of activations are unsigned, the least weight code unused."""
    assert layer.gemm is not None
    largest = int((2**precision.activation.bits - 1) * precision.weight.largest)
    if named == PAIRS:
        is_paired = layer.kind in ("linear", "conv2d") and not has_one_input_per_output(layer)
        return not is_paired or 2 * largest <= LARGEST_PAIR
    return layer.gemm.k * largest < 1 << (accumulator_bits(named) - 1)
