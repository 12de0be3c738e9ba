"""The ten faults of accuracy that can be planted in a subject, and the layers where each of them can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from haq.errors import lookup
from haq.nn.diagnosis.fault_ranges import (
    accumulator_saturation,
    activation_outliers,
    calibration_mismatch,
    float_range,
    join_mismatch,
    sensitive_operator,
)
from haq.nn.diagnosis.fault_weights import biased_error, block, channel_imbalance, degenerate_scale, error_accumulation
from haq.nn.diagnosis.looked import batches_of
from haq.nn.diagnosis.rescaling import pair_of, pairs
from haq.nn.diagnosis.subject import Subject
from haq.nn.quantizers import QuantizedWeight
from haq.nn.tuned import bias_key
from haq.workload import GlueOp, LayerSpec

Fault = Callable[[Subject, str, float, np.random.Generator], Subject]
"""(subject, layer of `places`, strength of `STRENGTHS`, randomness) -> a new subject with the fault."""

FAULTS: Mapping[str, Fault] = {
    "activation-outliers": activation_outliers,
    "channel-imbalance": channel_imbalance,
    "biased-error": biased_error,
    "calibration-mismatch": calibration_mismatch,
    "float-range": float_range,
    "accumulator-saturation": accumulator_saturation,
    "degenerate-scale": degenerate_scale,
    "sensitive-operator": sensitive_operator,
    "join-mismatch": join_mismatch,
    "error-accumulation": error_accumulation,
}
_BEHIND = frozenset({"activation", "smooth", "norm", "softmax", "mul"})
"""Kinds of ops that a target may force to integers."""


def places(subject: Subject, mode: str) -> tuple[str, ...]:
    """The layers where the mode can be planted, in the order in which they run; of a block its first layer.

    Raises InputError on an unknown mode, and for rescalings (channel-imbalance, float-range) without calibration data.
    """
    return lookup(_PLACES, mode, "mode")(subject)


def touched(subject: Subject, mode: str, layer: str) -> tuple[str, ...]:
    """The layers in which the fault planted at `layer` does its harm: each is a right answer to where it is.

    Channels of very different range harm attention products that read them too; a gain is lost in a whole block.
    """
    if mode == "error-accumulation":
        return block(subject, layer)
    if mode == "channel-imbalance":
        batch = batches_of(subject, layer)[0]
        return (layer, *pair_of(subject.model, subject.workload, batch, layer).products)
    return (layer,)


def _with_range(subject: Subject) -> tuple[str, ...]:
    """Layers whose first operand has a static integer range."""
    return tuple(name for name in subject.workload.layer_names if (name, 0) in subject.numbers.quantizers)


def _with_codes(subject: Subject) -> tuple[str, ...]:
    """Layers that multiply with integer codes; tables are none."""
    return tuple(spec.name for spec in subject.workload.layers if _codes(subject, spec) is not None)


def _with_sums(subject: Subject) -> tuple[str, ...]:
    """Layers whose products are summed as integers with one scale per output channel."""
    ranged = frozenset(_with_range(subject))
    specs = [spec for spec in subject.workload.layers if spec.name in ranged]
    found = ((spec, _codes(subject, spec)) for spec in specs if not spec.kind.startswith("conv_transpose"))
    return tuple(spec.name for spec, codes in found if codes is not None and codes.format.group is None)


def _with_bias(subject: Subject) -> tuple[str, ...]:
    return tuple(s.name for s in subject.workload.layers if bias_key(subject.model, s) in subject.numbers.biases)


def _with_pair(subject: Subject) -> tuple[str, ...]:
    batch = batches_of(subject, subject.workload.name)[0]
    return tuple(pair.producer for pair in pairs(subject.model, subject.workload, batch))


def _with_imbalance(subject: Subject) -> tuple[str, ...]:
    """Of pairs those whose first weight has one scale per channel, which it can lose."""
    summed = {name for name in _with_codes(subject) if subject.executed.precision(name).weight.group is None}
    return tuple(name for name in _with_pair(subject) if name in summed)


def _before_ops(subject: Subject) -> tuple[str, ...]:
    """Layers behind which an op may be forced to integers, and the last one."""
    workload = subject.workload
    kinds = {node.name: node.kind for node in workload.nodes if isinstance(node, GlueOp)}
    return tuple(
        name
        for name in workload.layer_names
        if name in workload.outputs or any(kinds.get(reader) in _BEHIND for reader in workload.consumers[name])
    )


def _joined(subject: Subject) -> tuple[str, ...]:
    """Layers whose result is added to another, or put beside it, as it is."""
    joins = {
        node.name
        for node in subject.workload.nodes
        if isinstance(node, GlueOp) and node.kind in ("add", "reshape") and len(set(node.inputs)) > 1
    }
    names = subject.workload.layer_names
    return tuple(name for name in names if joins.intersection(subject.workload.consumers[name]))


def _in_blocks(subject: Subject) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found[0] for name in subject.workload.layer_names if (found := block(subject, name))))


def _codes(subject: Subject, layer: LayerSpec) -> QuantizedWeight | None:
    if layer.weight is None or layer.kind == "embedding":
        return None
    stored = subject.numbers.weights[layer.weight.key]
    return stored if isinstance(stored, QuantizedWeight) else None


_PLACES: Mapping[str, Callable[[Subject], tuple[str, ...]]] = {
    "activation-outliers": _with_range,
    "channel-imbalance": _with_imbalance,
    "biased-error": _with_bias,
    "calibration-mismatch": _with_range,
    "float-range": _with_pair,
    "accumulator-saturation": _with_sums,
    "degenerate-scale": _with_codes,
    "sensitive-operator": _before_ops,
    "join-mismatch": _joined,
    "error-accumulation": _in_blocks,
}
