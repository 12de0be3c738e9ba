"""The cost of a whole workload under an executed assignment: the sum over kernels and over edges between layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from haq.candidate import Fallback
from haq.hardware.likeness import of_change
from haq.hardware.roofline import LayerCost, kernel_cost, seconds, traffic_mj
from haq.hardware.schedule import Kernel, Read, schedule
from haq.hardware.schema import HardwareProfile
from haq.hardware.size import size_bytes
from haq.hardware.work import Setting, edge_work
from haq.precision import BIT_WIDTHS, FP32, Assignment, Format, Precision
from haq.workload import Unsupported, Workload, elements


@dataclass(frozen=True)
class ConvertCost:
    """What it costs that one tensor passes between two kernels of different activation formats.

    breaks: a fusion that the difference undoes, `addition` or `attention`; empty for a plain conversion.
    """

    source: str
    consumer: str
    from_format: Format
    to_format: Format
    latency_ms: float
    traffic_bytes: float
    energy_mj: float | None
    breaks: str = ""


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
        return sum(k.traffic_bytes for k in self.kernels) + sum(c.traffic_bytes for c in self.converts)

    @property
    def energy_mj(self) -> float | None:
        """Arithmetic and off-chip traffic; None as soon as one kernel's is unknown."""
        parts = [k.energy_mj for k in self.kernels] + [c.energy_mj for c in self.converts]
        known = [energy for energy in parts if energy is not None]
        return sum(known) if len(known) == len(parts) else None

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
    kernels, setting = plan(workload, profile, batch)
    precisions = [executed.precision(k.anchor) if k.anchor else FP32 for k in kernels]
    costs = [kernel_cost(k, p, setting) for k, p in zip(kernels, precisions, strict=True)]
    return CostBreakdown(
        target=profile.name,
        batch=batch,
        layers=tuple(c for c, k in zip(costs, kernels, strict=True) if k.head is not None),
        glue=tuple(c for c, k in zip(costs, kernels, strict=True) if k.head is None),
        converts=tuple(_converts(kernels, precisions, setting)),
        per_inference_ms=1e3 * profile.overhead.inference.si,
        size_bytes=size_bytes(workload, executed),
        activation_peak_bytes=_peak_bytes(kernels, precisions, workload, batch),
        macs=batch * workload.macs,
    )


def plan(workload: Workload, profile: HardwareProfile, batch: int) -> tuple[tuple[Kernel, ...], Setting]:
    """The kernels that run and where: everything that does not depend on the assignment."""
    return _plan_of(_ById(workload), _ById(profile), batch)


def convert_cost(
    read: Read, writer: Kernel, consumer: str, formats: tuple[Format, Format], setting: Setting
) -> ConvertCost | None:
    """What the read costs when it passes from the first format to the second; None where they are the same."""
    works = tuple(edge_work(read, formats, setting))
    if formats[0] == formats[1]:
        return None
    traffic = sum(work.dram_bytes for work in works)
    seen = setting.profile.correction
    to_ms = 1e3 * (1.0 if seen is None else seen.factor(of_change(read, writer, formats, setting)))
    return ConvertCost(
        writer.name,
        consumer,
        *formats,
        to_ms * sum(seconds(work, setting.profile) for work in works),
        traffic,
        traffic_mj(traffic, setting.profile),
        "attention" if read.inside else "addition" if any(work.op_class == "glue" for work in works) else "",
    )


@lru_cache(maxsize=32)
def _plan_of(workload: _ById, profile: _ById, batch: int) -> tuple[tuple[Kernel, ...], Setting]:
    kernels = schedule(workload.value, profile.value)
    return kernels, Setting(profile.value, batch, _kept_weights(workload.value, kernels, profile.value, batch))


def _kept_weights(
    workload: Workload, kernels: Sequence[Kernel], profile: HardwareProfile, batch: int
) -> frozenset[int]:
    """The widths at which weights and activations, all of that width, fit on the chip together.

    Taking all layers at one width keeps the cost a sum over layers and edges, so that its table is exact. Of a look-up
    table only the rows that are read count, as activations.
    """
    if profile.on_chip is None or not profile.on_chip.keeps_weights:
        return frozenset()
    fp32_peak = _peak_bytes(kernels, [FP32] * len(kernels), workload, batch)
    tables = {w.key: w.elements for layer in workload.layers if layer.kind == "embedding" and (w := layer.weight)}
    streamed = workload.parameters - sum(tables.values())
    need = {bits: (4 * streamed + fp32_peak) * bits / 32 for bits in BIT_WIDTHS}
    room = profile.on_chip.kept or profile.on_chip.capacity
    return frozenset(bits for bits, size in need.items() if size <= room.si)


@dataclass(frozen=True)
class _ById:
    """A value compared by identity: hashing a whole workload for every price would cost more than the price."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value


def _converts(kernels: Sequence[Kernel], precisions: Sequence[Precision], setting: Setting) -> Iterable[ConvertCost]:
    """One per tensor that a kernel reads in another activation format than it was written in."""
    for kernel, precision in zip(kernels, precisions, strict=True):
        for read in kernel.reads:
            if read.source is not None:
                formats = precisions[read.source].activation, precision.activation
                cost = convert_cost(read, kernels[read.source], kernel.name, formats, setting)
                if cost is not None:
                    yield cost


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
