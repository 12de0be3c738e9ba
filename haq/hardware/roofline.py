"""The time, traffic and energy of one kernel, and of one change of format: pure functions of shapes and a profile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from haq.hardware.legalize import arithmetic_of
from haq.hardware.schedule import Kernel
from haq.hardware.schema import Arithmetic, HardwareProfile
from haq.hardware.size import bias_bytes, weight_bytes
from haq.precision import FORMATS, Format, Precision
from haq.workload import Gemm, LayerSpec

FP32 = Precision(FORMATS["fp32"], FORMATS["fp32"])

CLASS_OF_KIND = {"linear": "gemm", "matmul": "attention", "embedding": "lookup"}
"""Layer kind -> class of kernel; every other kind is `conv`, and a depthwise one `depthwise`."""


@dataclass(frozen=True)
class LayerCost:
    """What one kernel costs per batch. layer: its layer, or the glue op's own name; precision: as executed.

    convert_ms: of the network's own inputs, which arrive in fp32. weight_bytes: with scales and bias.
    energy_mj: absent where the profile has no figure for it.
    """

    layer: str
    precision: Precision
    compute_ms: float
    memory_ms: float
    overhead_ms: float
    convert_ms: float
    traffic_bytes: float
    weight_bytes: int
    energy_mj: float | None

    @property
    def latency_ms(self) -> float:
        """Arithmetic and memory overlap; the fixed cost and the conversions do not."""
        return max(self.compute_ms, self.memory_ms) + self.overhead_ms + self.convert_ms

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


def op_class(layer: LayerSpec) -> str:
    """The class of kernel that a layer runs as, one of OP_CLASSES."""
    return "depthwise" if layer.is_depthwise else CLASS_OF_KIND.get(layer.kind, "conv")


def kernel_cost(kernel: Kernel, precision: Precision, profile: HardwareProfile, batch: int) -> LayerCost:
    """The kernel in the precision of its anchor, without the conversions at its edges to other layers."""
    layer = kernel.head
    stored = 0
    if layer is not None:
        stored = bias_bytes(layer, precision) + (weight_bytes(layer.weight, precision.weight) if layer.weight else 0)
    fetched = float(stored)
    if layer is not None and layer.kind == "embedding":
        # A look-up reads one row per token, not the table.
        fetched = batch * layer.output_elements * precision.weight.bits / 8
    traffic = fetched + _off_chip_bytes(kernel, precision.activation, profile, batch)
    compute = _compute_seconds(layer, precision, profile, batch) if layer is not None else 0.0
    converted = 0 if kernel.is_lookup else sum(read.elements for read in kernel.reads if read.source is None)
    return LayerCost(
        layer=kernel.name,
        precision=precision,
        compute_ms=1e3 * compute,
        memory_ms=1e3 * traffic / _bandwidth(profile),
        overhead_ms=1e3 * profile.overhead.kernel["glue" if layer is None else op_class(layer)].si,
        convert_ms=1e3 * edge_seconds(converted, FP32.activation, precision.activation, profile, batch),
        traffic_bytes=traffic,
        weight_bytes=stored,
        energy_mj=_energy_mj(layer, traffic, precision, profile, batch),
    )


def edge_seconds(elements: int, source: Format, target: Format, profile: HardwareProfile, batch: int) -> float:
    """The time to bring `elements` per sample from one format to another between two kernels; 0 if they are the same.

    A conversion of its own reads and writes them all; one that the consumer does only reads them in the wider format.
    """
    if source == target or elements == 0:
        return 0.0
    read, written = (_spilled(batch * elements * fmt.bits / 8, profile) for fmt in (source, target))
    if profile.fusion.convert == "fused":
        return max(0.0, read - written) / _bandwidth(profile)
    return profile.overhead.kernel["convert"].si + (read + written) / _bandwidth(profile)


def _bandwidth(profile: HardwareProfile) -> float:
    return profile.memory.bandwidth.si * profile.memory.efficiency.si


def _spilled(size_bytes: float, profile: HardwareProfile) -> float:
    """The bytes of an activation that go off-chip: none where one tensor may stay on the chip."""
    on_chip = profile.on_chip
    stays = on_chip is not None and size_bytes <= on_chip.capacity.si * on_chip.resident.si
    return 0.0 if stays else size_bytes


def _off_chip_bytes(kernel: Kernel, fmt: Format, profile: HardwareProfile, batch: int) -> float:
    """Traffic of the activations: the network's inputs always, other tensors unless they stay on the chip."""
    width = fmt.bits / 8
    total = _spilled(batch * kernel.writes * width, profile)
    for read in kernel.reads:
        size = batch * read.elements * width
        total += size if read.source is None else _spilled(size, profile)
    return total


def _compute_seconds(layer: LayerSpec, precision: Precision, profile: HardwareProfile, batch: int) -> float:
    """Multiply-accumulates, padded to the target's tiles, over the rate; two operations each."""
    if layer.gemm is None:
        return 0.0
    row = profile.arithmetic[arithmetic_of(profile, layer, precision)]
    kind = op_class(layer)
    # Depthwise layers do not run on matrix tiles: the class's own, much lower, efficiency says what they reach.
    macs = batch * layer.macs if kind == "depthwise" else _padded_macs(layer, layer.gemm, profile, batch)
    return 2 * macs / (_rate(row) * profile.efficiency[kind].si)


def _rate(row: Arithmetic) -> float:
    """Operations per second as asked: a product that takes several passes is that much slower."""
    return row.peak.si / (row.passes.si if row.passes is not None else 1.0)


def _padded_macs(layer: LayerSpec, gemm: Gemm, profile: HardwareProfile, batch: int) -> float:
    """Multiply-accumulates of the padded products: the batch adds rows to a layer's, and products to an attention's."""
    rows, count = (gemm.m, gemm.count * batch) if layer.weight is None else (gemm.m * batch, gemm.count)
    tile = profile.tile
    sides = ((rows, tile.m), (gemm.n, tile.n), (gemm.k, tile.k))
    return count * math.prod(math.ceil(size / side.si) * side.si for size, side in sides)


def _energy_mj(
    layer: LayerSpec | None, traffic: float, precision: Precision, profile: HardwareProfile, batch: int
) -> float | None:
    """Arithmetic and off-chip traffic; None where a figure has no source. Static power is not in it."""
    energy = profile.energy
    if energy is None or not energy.dram.is_known:
        return None
    arithmetic = 0.0
    if layer is not None and layer.macs:
        mac = energy.mac.get(arithmetic_of(profile, layer, precision))
        if mac is None or not mac.is_known:
            return None
        arithmetic = batch * layer.macs * mac.si
    return 1e3 * (arithmetic + 8 * traffic * energy.dram.si)
