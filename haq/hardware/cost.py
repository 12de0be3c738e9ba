"""The cost of a whole workload under an executed assignment: the sum over kernels and over edges between layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from haq.candidate import Fallback
from haq.hardware.roofline import FP32, LayerCost, edge_seconds, kernel_cost
from haq.hardware.schedule import Kernel, schedule
from haq.hardware.schema import HardwareProfile
from haq.hardware.size import size_bytes
from haq.precision import Assignment, Format, Precision
from haq.workload import Unsupported, Workload, elements


@dataclass(frozen=True)
class ConvertCost:
    """The conversion of one tensor between two layers whose activation formats differ."""

    source: str
    consumer: str
    from_format: Format
    to_format: Format
    latency_ms: float


@dataclass(frozen=True)
class CostBreakdown:
    """Modelled cost per batch. layers: a cost per layer, in order; glue: of the ops that run as kernels of their own.

    Totals leave out what is listed as unsupported, which is never silent: `to_json` carries the list.
    """

    target: str
    batch: int
    layers: tuple[LayerCost, ...]
    glue: tuple[LayerCost, ...]
    converts: tuple[ConvertCost, ...]
    per_inference_ms: float
    size_bytes: int
    activation_peak_bytes: int
    macs: int

    @property
    def kernels(self) -> tuple[LayerCost, ...]:
        return self.layers + self.glue

    @property
    def latency_ms(self) -> float:
        kernels = sum(cost.latency_ms for cost in self.kernels)
        return self.per_inference_ms + kernels + sum(convert.latency_ms for convert in self.converts)

    @property
    def traffic_bytes(self) -> float:
        """Off-chip traffic of weights and activations."""
        return sum(cost.traffic_bytes for cost in self.kernels)

    @property
    def energy_mj(self) -> float | None:
        """Arithmetic and off-chip traffic; None as soon as one kernel's is unknown."""
        known = [cost.energy_mj for cost in self.kernels if cost.energy_mj is not None]
        return sum(known) if len(known) == len(self.kernels) else None

    def figures(self) -> dict[str, float]:
        """The totals by their names in every haq file; what is unknown is absent."""
        figures: dict[str, float] = {
            "latency_ms": self.latency_ms,
            "size_bytes": self.size_bytes,
            "activation_peak_bytes": self.activation_peak_bytes,
            "traffic_bytes": self.traffic_bytes,
            "macs": self.macs,
        }
        return figures if self.energy_mj is None else {**figures, "energy_mj": self.energy_mj}

    def to_json(self, fallbacks: Sequence[Fallback], unsupported: Iterable[Unsupported]) -> dict[str, Any]:
        """`haq estimate --json`."""
        return {
            "target": self.target,
            "batch": self.batch,
            **self.figures(),
            "fallbacks": [fallback.to_json() for fallback in fallbacks],
            "unsupported": [{"op": op.op, "module": op.module} for op in unsupported],
        }


def estimate(workload: Workload, executed: Assignment, profile: HardwareProfile, *, batch: int) -> CostBreakdown:
    """The modelled cost of one batch.

    executed: a Precision for every layer, as `legalize` returns it; anything else is a programming error.
    """
    kernels = _schedule(workload, profile)
    precisions = [executed.precision(k.anchor) if k.anchor else FP32 for k in kernels]
    costs = [kernel_cost(k, p, profile, batch) for k, p in zip(kernels, precisions, strict=True)]
    return CostBreakdown(
        target=profile.name,
        batch=batch,
        layers=tuple(c for c, k in zip(costs, kernels, strict=True) if k.head is not None),
        glue=tuple(c for c, k in zip(costs, kernels, strict=True) if k.head is None),
        converts=tuple(_converts(kernels, precisions, profile, batch)),
        per_inference_ms=1e3 * profile.overhead.inference.si,
        size_bytes=size_bytes(workload, executed),
        activation_peak_bytes=_peak_bytes(kernels, precisions, workload, batch),
        macs=batch * workload.macs,
    )


@lru_cache(maxsize=32)
def _schedule_of(workload: _ById, profile: _ById) -> tuple[Kernel, ...]:
    return schedule(workload.value, profile.value)


@dataclass(frozen=True)
class _ById:
    """A value compared by identity: hashing a whole workload for every price would cost more than the price."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value


def _schedule(workload: Workload, profile: HardwareProfile) -> tuple[Kernel, ...]:
    return _schedule_of(_ById(workload), _ById(profile))


def _converts(
    kernels: Sequence[Kernel], precisions: Sequence[Precision], profile: HardwareProfile, batch: int
) -> Iterable[ConvertCost]:
    """One per tensor that a kernel reads in another activation format than it was written in."""
    for kernel, precision in zip(kernels, precisions, strict=True):
        for read in kernel.reads:
            if read.source is None:
                continue
            before, after = precisions[read.source].activation, precision.activation
            if before != after:
                seconds = edge_seconds(read.elements, before, after, profile, batch)
                yield ConvertCost(kernels[read.source].name, kernel.name, before, after, 1e3 * seconds)


def _peak_bytes(kernels: Sequence[Kernel], precisions: Sequence[Precision], workload: Workload, batch: int) -> int:
    """The largest sum of live activations over the schedule; a network's input lives until its last reader."""
    inputs = 4 * sum(elements(shape) for _, shape in workload.inputs)
    last_input = max((i for i, k in enumerate(kernels) if any(r.source is None for r in k.reads)), default=-1)
    live: dict[int, float] = {}
    peak = 0.0
    for index, (kernel, precision) in enumerate(zip(kernels, precisions, strict=True)):
        live[index] = kernel.writes * precision.activation.bits / 8
        peak = max(peak, sum(live.values()) + (inputs if index <= last_input else 0))
        live = {i: size for i, size in live.items() if kernels[i].last_use > index}
    return round(batch * peak)
