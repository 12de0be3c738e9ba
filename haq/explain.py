"""Explains a modelled latency layer by layer: what bounds it, the time at each bit-width, and why fewer do not help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from haq.hardware.roofline import LayerCost
from haq.placing import Width, cases
from haq.precision import Precision
from haq.pricing import Estimate
from haq.reasons import Reason, filled, reasons_of


@dataclass(frozen=True)
class LayerExplanation:
    """One layer. cost: of its kernel alone, as it runs now; share: of the whole latency.

    widths: at each of the four bit-widths what runs and how long, its neighbours left as they are: its kernel, and
    the changes of format at the edges of whatever works in its format.
    """

    cost: LayerCost
    share: float
    widths: tuple[Width, ...]
    reasons: tuple[Reason, ...]

    @property
    def layer(self) -> str:
        return self.cost.layer

    @property
    def executed(self) -> Precision:
        return self.cost.precision

    @property
    def bound(self) -> str:
        return self.cost.bound

    @property
    def latency_ms(self) -> float:
        return self.cost.latency_ms

    @property
    def why(self) -> tuple[str, ...]:
        """Why fewer bits do not help, most important first; empty where they do."""
        return tuple(map(str, self.reasons))

    def to_json(self) -> dict[str, Any]:
        """The row of a part, with `at_bits`: bit-width -> what runs, and its latency."""
        return {
            **_row(self.cost, "layer", self.share),
            "at_bits": {
                str(w.bits): {"executed": str(w.executed), "latency_ms": w.placed.latency_ms} for w in self.widths
            },
            "why": list(self.why),
        }


@dataclass(frozen=True)
class Cause:
    """A reason that several layers share, those first where it is about most time.

    times_ms and part_ms: summed over them. example: the first one's own head, where theirs differ.
    """

    head: str
    detail: str
    layers: tuple[str, ...]
    part_ms: float
    times_ms: tuple[float, ...]
    example: str = ""

    @property
    def text(self) -> str:
        """The reason without its head, with the sums of its times."""
        return filled(self.detail, self.times_ms) + (f"; {self.layers[0]} is {self.example}" if self.example else "")


def explain(found: Estimate) -> tuple[LayerExplanation, ...]:
    """Every layer, in order."""
    total_ms = found.cost.latency_ms
    return tuple(
        LayerExplanation(case.now.kernel, case.now.kernel.latency_ms / total_ms, case.widths, reasons_of(case))
        for case in cases(found.workload, found.executed, found.profile, batch=found.cost.batch, scaling=found.scaling)
    )


def parts(found: Estimate, explanations: Iterable[LayerExplanation]) -> list[dict[str, Any]]:
    """Where the latency goes, slowest first; the rows add up to the whole.

    kind: `layer`, `glue`, `convert` (one tensor between two layers) or `inference` (the fixed cost of a batch).
    """
    total_ms = found.cost.latency_ms
    rows = [layer.to_json() for layer in explanations]
    rows += [_row(glue, "glue", glue.latency_ms / total_ms) for glue in found.cost.glue]
    rows += [
        {
            "name": f"{c.source} -> {c.consumer}", "kind": "convert", "executed": f"{c.from_format} -> {c.to_format}",
            "bound": "convert", "latency_ms": c.latency_ms, "share": c.latency_ms / total_ms,
        }
        for c in found.cost.converts
    ]  # fmt: skip
    if fixed_ms := found.cost.per_inference_ms:
        row = {"name": "per batch", "kind": "inference", "bound": "overhead", "latency_ms": fixed_ms}
        rows.append({**row, "share": fixed_ms / total_ms})
    return sorted(rows, key=lambda row: -row["latency_ms"])


def causes(explanations: Iterable[LayerExplanation]) -> tuple[Cause, ...]:
    """The distinct reasons with the layers that share them, the one about most time first."""
    shared: dict[tuple[str, str], list[tuple[Reason, str]]] = {}
    for layer in explanations:
        for reason in layer.reasons:
            shared.setdefault((reason.kind or reason.head, reason.detail), []).append((reason, layer.layer))
    return tuple(sorted(map(_cause, shared.values()), key=lambda cause: -cause.part_ms))


def _cause(members: list[tuple[Reason, str]]) -> Cause:
    members = sorted(members, key=lambda member: -member[0].part_ms)
    first = members[0][0]
    differ = any(reason.head != first.head for reason, _ in members)
    return Cause(
        head=first.kind if differ else first.head,
        detail=first.detail,
        layers=tuple(layer for _, layer in members),
        part_ms=sum(reason.part_ms for reason, _ in members),
        times_ms=tuple(sum(times) for times in zip(*(reason.times_ms for reason, _ in members), strict=True)),
        example=first.head if differ else "",
    )


def _row(cost: LayerCost, kind: str, share: float) -> dict[str, Any]:
    return {
        "name": cost.layer, "kind": kind, "executed": str(cost.precision), "bound": cost.bound,
        "latency_ms": cost.latency_ms, "share": share, "compute_ms": cost.compute_ms, "memory_ms": cost.memory_ms,
        "overhead_ms": cost.overhead_ms, "convert_ms": cost.convert_ms, "traffic_bytes": cost.traffic_bytes,
        "size_bytes": cost.weight_bytes,
    }  # fmt: skip
