"""Joins whose inputs share one scale: how much of the smaller input the shared step costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from haq.diagnose.evidence import JoinEvidence, LayerEvidence, Range
from haq.nn.diagnosis.subject import Subject
from haq.workload import GlueOp, LayerSpec, Workload

CODES = 255
"""Steps of an 8-bit scale: what the smaller input would have for itself."""


def join_evidence(
    subject: Subject, layers: Mapping[str, LayerEvidence], outputs: Mapping[str, Range]
) -> tuple[JoinEvidence, ...]:
    """One for every layer in `subject.join_steps` that an add or a concatenation reads, directly or behind glue.

    outputs: layer -> least and largest number of its FP32 result. An input whose magnitude no layer shows is left out.
    """
    found = []
    for layer, step in subject.join_steps.items():
        node = _join(subject.workload, layer)
        if node is None:
            continue
        largest = {name: _magnitude(subject.workload, name, layers, outputs) for name in node.inputs}
        low, high = min(outputs[layer][0], 0.0), max(outputs[layer][1], 0.0)
        own = (high - low) / CODES
        lost = math.log2(step / own) if own > 0 and step > 0 else 0.0
        known = {name: value for name, value in largest.items() if value is not None}
        found.append(JoinEvidence(node.name, layer, known, lost))
    return tuple(found)


def forced_bits_lost(subject: Subject, outputs: Mapping[str, Range]) -> dict[str, float]:
    """Layer -> bits that the op behind it is short of 8, where the target forces it to integers."""
    found = {}
    for layer, step in subject.forced_steps.items():
        own = (max(outputs[layer][1], 0.0) - min(outputs[layer][0], 0.0)) / CODES
        found[layer] = math.log2(step / own) if own > 0 and step > 0 else 0.0
    return found


def _join(workload: Workload, layer: str) -> GlueOp | None:
    """The first add or concatenation behind a layer, in the order of execution."""
    glue = {node.name: node for node in workload.nodes if isinstance(node, GlueOp)}
    pending, behind = [layer], list[str]()
    while pending:
        for name in workload.consumers[pending.pop()]:
            if name in glue:
                is_join = len(glue[name].inputs) > 1 and glue[name].kind in ("add", "reshape")
                (behind if is_join else pending).append(name)
    order = {node.name: number for number, node in enumerate(workload.nodes)}
    return glue[min(behind, key=order.__getitem__)] if behind else None


def _magnitude(
    workload: Workload, name: str, layers: Mapping[str, LayerEvidence], outputs: Mapping[str, Range]
) -> float | None:
    """The largest FP32 magnitude of a node's result: seen as a layer's, or where a layer reads it; else what its own
    only input has, for glue that makes no number larger."""
    if name in outputs:
        return max(map(abs, outputs[name]))
    for reader in workload.nodes:
        if isinstance(reader, LayerSpec) and name in reader.inputs:
            for operand in layers[reader.name].operands:
                if operand.index == reader.inputs.index(name):
                    return max(map(abs, operand.seen))
    node = next((n for n in workload.nodes if n.name == name), None)
    if isinstance(node, GlueOp) and len(node.inputs) == 1 and node.kind in ("activation", "reshape", "pool"):
        return _magnitude(workload, node.inputs[0], layers, outputs)
    return None
