"""The time and energy of work: the larger of arithmetic and memory time, plus a fixed cost per kernel."""

from __future__ import annotations

from dataclasses import dataclass

from haq.hardware.legalize import arithmetic_of
from haq.hardware.likeness import of_kernel
from haq.hardware.machine import Arithmetic
from haq.hardware.schedule import Kernel
from haq.hardware.schema import HardwareProfile
from haq.hardware.work import Setting, Work, kernel_work, own_converts, stored_bytes
from haq.precision import Precision
from haq.workload import LayerSpec


@dataclass(frozen=True)
class LayerCost:
    """What one kernel costs per batch. layer: its layer, or the glue op's own name; precision: as executed.

    exposed_ms: the part of the shorter of arithmetic and memory time that does not hide behind the longer. convert_ms:
    changes of format that it needs whatever its neighbours execute. weight_bytes: with scales and bias.
    energy_mj: absent where the profile has no figure for it.
    """

    layer: str
    precision: Precision
    compute_ms: float
    memory_ms: float
    exposed_ms: float
    overhead_ms: float
    convert_ms: float
    traffic_bytes: float
    weight_bytes: int
    energy_mj: float | None

    @property
    def latency_ms(self) -> float:
        """Arithmetic and memory overlap but for what is exposed; the fixed cost and the conversions do not."""
        return max(self.compute_ms, self.memory_ms) + self.exposed_ms + self.overhead_ms + self.convert_ms

    @property
    def bound(self) -> str:
        """`compute`, `memory`, `overhead` or `convert`, whichever takes longest."""
        times = {
            "compute": self.compute_ms,
            "memory": self.memory_ms,
            "overhead": self.overhead_ms,
            "convert": self.convert_ms,
        }
        return max(times, key=lambda name: times[name])


def kernel_cost(kernel: Kernel, precision: Precision, setting: Setting) -> LayerCost:
    """The kernel in the precision of its anchor, without the conversions at its edges to other layers."""
    profile, work = setting.profile, kernel_work(kernel, precision, setting)
    converts = tuple(own_converts(kernel, precision, setting))
    traffic = work.dram_bytes + sum(convert.dram_bytes for convert in converts)
    compute, memory = compute_seconds(work, profile), memory_seconds(work, profile)
    # A measured table corrects all parts of the time alike: what it saw is their sum.
    seen = profile.correction
    to_ms = 1e3 * (1.0 if seen is None else seen.factor(of_kernel(kernel, precision, setting)))
    return LayerCost(
        layer=kernel.name,
        precision=precision,
        compute_ms=to_ms * compute,
        memory_ms=to_ms * memory,
        exposed_ms=to_ms * exposed_seconds(compute, memory, profile),
        overhead_ms=to_ms * overhead_seconds(work, profile),
        convert_ms=to_ms * sum(seconds(convert, profile) for convert in converts),
        traffic_bytes=traffic,
        weight_bytes=stored_bytes(kernel.head, precision),
        energy_mj=_energy_mj(kernel.head, traffic, precision, setting),
    )


def seconds(work: Work, profile: HardwareProfile) -> float:
    """The time that work takes."""
    compute, memory = compute_seconds(work, profile), memory_seconds(work, profile)
    return max(compute, memory) + exposed_seconds(compute, memory, profile) + overhead_seconds(work, profile)


def compute_seconds(work: Work, profile: HardwareProfile) -> float:
    """Arithmetic, then the vector unit's part."""
    spent = 0.0
    if work.operations:
        share = profile.share_of_peak(work.op_class, work.arithmetic)
        spent += work.operations / (rate(profile.arithmetic[work.arithmetic]) * share)
    return spent if profile.vector is None else spent + work.finished / profile.vector.rate.si


def memory_seconds(work: Work, profile: HardwareProfile) -> float:
    """Off-chip and on-chip traffic one after the other; the latter is free where its bandwidth is unknown."""
    spent = work.dram_bytes / (profile.memory.bandwidth.si * profile.memory.efficiency.si)
    if profile.on_chip is not None and profile.on_chip.bandwidth.is_known:
        spent += work.on_chip_bytes / profile.on_chip.bandwidth.si
    return spent if profile.attention is None else spent + work.score_bytes / profile.attention.bandwidth.si


def exposed_seconds(compute: float, memory: float, profile: HardwareProfile) -> float:
    """The part of the shorter time that does not hide behind the longer one."""
    overlap = profile.memory.overlap
    return 0.0 if overlap is None else (1.0 - overlap.si) * min(compute, memory)


def overhead_seconds(work: Work, profile: HardwareProfile) -> float:
    fixed = work.launches * profile.overhead.kernel[work.op_class].si
    per_input = profile.overhead.float_input
    return fixed if per_input is None else fixed + work.float_inputs * per_input.si


def rate(row: Arithmetic) -> float:
    """Operations per second as asked: a product that takes several passes is that much slower."""
    return row.peak.si / (row.passes.si if row.passes is not None else 1.0)


def traffic_mj(dram_bytes: float, profile: HardwareProfile) -> float | None:
    """The energy of off-chip traffic; None where it has no figure."""
    energy = profile.energy
    return None if energy is None or not energy.dram.is_known else 1e3 * 8 * dram_bytes * energy.dram.si


def _energy_mj(layer: LayerSpec | None, traffic: float, precision: Precision, setting: Setting) -> float | None:
    """Arithmetic and off-chip traffic; None where a figure has no source. Static power is not in it."""
    profile, moved = setting.profile, traffic_mj(traffic, setting.profile)
    if moved is None or profile.energy is None or layer is None or not layer.macs:
        return moved
    mac = profile.energy.mac.get(arithmetic_of(profile, layer, precision))
    if mac is None or not mac.is_known:
        return None
    return moved + 1e3 * setting.batch * layer.macs * mac.si
