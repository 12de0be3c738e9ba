"""Fills the tables that a cost is a sum of: one entry per kernel and level, one per read and pair of levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.hardware.cost import convert_cost, plan
from haq.hardware.legalize import execution, meaning
from haq.hardware.roofline import kernel_cost
from haq.hardware.schedule import Kernel, Read
from haq.hardware.schema import HardwareProfile
from haq.hardware.size import UNQUANTIZED_BYTES, bias_bytes, state_bytes, weight_bytes
from haq.hardware.work import Setting
from haq.precision import FP32, Format, Precision
from haq.scaling import Scaling
from haq.workload import LayerSpec, Workload, elements

Floats = NDArray[np.float64]
Codes = NDArray[np.uint8]
Indices = NDArray[np.intp]
Seen = NDArray[np.uint16]

BASE = 4
"""Levels that an index leaves room for: two bits each."""


@dataclass(frozen=True)
class Shared:
    """Bytes that several layers store once per format: a tied weight, or the bias of a module that runs twice.

    layers: the last one first, since `size_bytes` keeps the last copy of each format. Walking along
    them, the index is BASE x (formats seen so far, as bits) + level. stored_bytes: (layers, indices) what the layer
    adds there, nothing for a format that was seen; seen: (layers, indices) the formats seen after it.
    """

    layers: tuple[int, ...]
    stored_bytes: Floats
    seen: Seen

    def total_bytes(self, levels: Codes) -> Floats:
        """Bytes of each candidate. levels: (layers of the workload, candidates)."""
        total = np.zeros(levels.shape[1])
        seen = np.zeros(levels.shape[1], dtype=np.uint16)
        for layer, stored_bytes, after in zip(self.layers, self.stored_bytes, self.seen, strict=True):
            index = seen * BASE + levels[layer]
            total += stored_bytes[index]
            seen = after[index]
        return total


@dataclass(frozen=True)
class Lives:
    """Activations in the order of the schedule, per sample.

    live_bytes: (kernels, levels) of each kernel's result; until: the last kernel that still needs it, itself at least.
    input_bytes: of the network's inputs, which live up to the kernel `last_input`.
    """

    live_bytes: Floats
    anchors: Indices
    until: Indices
    input_bytes: float
    last_input: int

    def over_time(self, sizes_bytes: Floats) -> Floats:
        """(kernels,) what is live at each step. sizes_bytes: of each kernel's result."""
        # Bytes are multiples of a half, so that these sums are exact in any order.
        freed = np.bincount(self.until + 1, sizes_bytes, len(sizes_bytes) + 1)[:-1]
        live: Floats = np.cumsum(sizes_bytes - freed)
        live[: self.last_input + 1] += self.input_bytes
        return live

    def peak_bytes(self, levels: Indices) -> float:
        """The largest sum of live activations of one candidate. levels: one per layer, and 0 for glue in fp32."""
        sizes = self.live_bytes[np.arange(len(self.until)), levels[self.anchors]]
        return float(self.over_time(sizes).max(initial=0.0))


@dataclass(frozen=True)
class Entries:
    """Every term of the cost of a workload on a target; a layer is meant by its index, none (fp32 glue) by the next.

    executed: per layer, the precision that each level is executed in.
    kernels: (kernels, levels, 3) latency_ms, traffic_bytes and energy_mj, NaN where that has no source; layers before
    glue, as `CostBreakdown` adds them up. anchors: the layer whose level decides.
    reads: (reads, levels, levels, 3) the same of a tensor that passes between two layers, by the level of its writer
    and of its reader, which are `ends` (reads, 2).
    stored_bytes: (layers, levels) what no other layer shares; shared: what several do; fixed_bytes: the rest.
    """

    executed: tuple[tuple[Precision, ...], ...]
    kernels: Floats
    anchors: Indices
    reads: Floats
    ends: Indices
    per_inference_ms: float
    stored_bytes: NDArray[np.int64]
    shared: tuple[Shared, ...]
    fixed_bytes: int
    lives: Lives


def fill(workload: Workload, profile: HardwareProfile, batch: int, bits: Sequence[int], scaling: Scaling) -> Entries:
    """The entries for a level per bit-width, each in the precision that it is executed in, priced by the slow path."""
    executed = tuple(
        tuple(execution(profile, layer, meaning(profile, layer, b, scaling))[0] for b in bits)
        for layer in workload.layers
    )
    return fill_levels(workload, profile, batch, executed)


def fill_levels(
    workload: Workload, profile: HardwareProfile, batch: int, executed: tuple[tuple[Precision, ...], ...]
) -> Entries:
    """The entries for levels of one's own. executed: per layer, what each level runs in; for all layers as many, at
    most BASE, and the target must execute them."""
    kernels, setting = plan(workload, profile, batch)
    levels = len(executed[0]) if executed else 1
    index: dict[str | None, int] = {name: i for i, name in enumerate(workload.layer_names)}
    index[None] = len(executed)
    precisions = (*executed, (FP32,) * levels)
    ordered = sorted(kernels, key=lambda kernel: kernel.head is None)
    read = [(k, r) for k in kernels for r in k.reads if r.source is not None and kernels[r.source].anchor != k.anchor]
    writers = [kernels[r.source] for _, r in read if r.source is not None]
    ends = [(index[writer.anchor], index[k.anchor]) for writer, (k, _) in zip(writers, read, strict=True)]
    passed = [
        _read_rows(r, writer, k, (precisions[a], precisions[b]), setting)
        for (k, r), writer, (a, b) in zip(read, writers, ends, strict=True)
    ]
    return Entries(
        executed=executed,
        kernels=np.array([_kernel_rows(k, precisions[index[k.anchor]], setting) for k in ordered]),
        anchors=np.array([index[k.anchor] for k in ordered], dtype=np.intp),
        reads=np.array(passed).reshape(-1, levels, levels, 3),
        ends=np.array(ends, dtype=np.intp).reshape(-1, 2),
        per_inference_ms=1e3 * profile.overhead.inference.si,
        stored_bytes=_own_bytes(workload.layers, executed).reshape(-1, levels),
        shared=(*_tied_weights(workload.layers, executed), *_tied_biases(workload.layers, executed)),
        fixed_bytes=workload.unquantized_parameters * UNQUANTIZED_BYTES,
        lives=_lives(kernels, [index[k.anchor] for k in kernels], precisions, workload),
    )


def _kernel_rows(kernel: Kernel, precisions: Sequence[Precision], setting: Setting) -> list[tuple[float, float, float]]:
    rows = {}
    for precision in dict.fromkeys(precisions):
        cost = kernel_cost(kernel, precision, setting)
        rows[precision] = (cost.latency_ms, cost.traffic_bytes, _or_nan(cost.energy_mj))
    return [rows[precision] for precision in precisions]


def _read_rows(
    read: Read, writer: Kernel, reader: Kernel, precisions: tuple[Sequence[Precision], Sequence[Precision]],
    setting: Setting,
) -> list[list[tuple[float, float, float]]]:  # fmt: skip
    """By the writer's level, then by the reader's."""
    written, worked = ([p.activation for p in side] for side in precisions)
    rows: dict[tuple[Format, Format], tuple[float, float, float]] = {}
    for formats in dict.fromkeys((a, b) for a in written for b in worked):
        cost = convert_cost(read, writer, reader.name, formats, setting)
        rows[formats] = (0.0, 0.0, 0.0)
        if cost is not None:
            rows[formats] = (cost.latency_ms, cost.traffic_bytes, _or_nan(cost.energy_mj))
    return [[rows[a, b] for b in worked] for a in written]


def _or_nan(energy_mj: float | None) -> float:
    return float("nan") if energy_mj is None else energy_mj


def _own_bytes(layers: Sequence[LayerSpec], executed: Sequence[Sequence[Precision]]) -> NDArray[np.int64]:
    """(layers, levels) operand scales, and the weight and bias that no other layer shares."""
    keys = Counter(layer.weight.key for layer in layers if layer.weight is not None)
    modules = Counter(layer.module for layer in layers)
    found = []
    for layer, precisions in zip(layers, executed, strict=True):
        sizes = [state_bytes(layer, p) for p in precisions]
        if layer.weight is not None and keys[layer.weight.key] == 1:
            sizes = [s + weight_bytes(layer.weight, p.weight) for s, p in zip(sizes, precisions, strict=True)]
        if modules[layer.module] == 1:
            sizes = [s + bias_bytes(layer, p) for s, p in zip(sizes, precisions, strict=True)]
        found.append(sizes)
    return np.array(found, dtype=np.int64)


def _tied_weights(layers: Sequence[LayerSpec], executed: Sequence[Sequence[Precision]]) -> Iterable[Shared]:
    by_key: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        if layer.weight is not None:
            by_key.setdefault(layer.weight.key, []).append(i)

    def size(layer: LayerSpec, precision: Precision) -> int:
        assert layer.weight is not None
        return weight_bytes(layer.weight, precision.weight)

    for tied in by_key.values():
        if len(tied) > 1:
            yield _shared(tied, layers, executed, lambda p: p.weight.name, size)


def _tied_biases(layers: Sequence[LayerSpec], executed: Sequence[Sequence[Precision]]) -> Iterable[Shared]:
    by_module: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        by_module.setdefault(layer.module, []).append(i)
    for tied in by_module.values():
        if len(tied) > 1:
            yield _shared(tied, layers, executed, lambda p: p.activation.bits, bias_bytes)


def _shared(
    tied: Sequence[int],
    layers: Sequence[LayerSpec],
    executed: Sequence[Sequence[Precision]],
    copy: Callable[[Precision], Hashable],
    size_bytes: Callable[[LayerSpec, Precision], int],
) -> Shared:
    """copy: precisions for which it is equal store one copy."""
    last_first = tuple(reversed(tied))
    numbers = {c: n for n, c in enumerate(dict.fromkeys(copy(p) for i in tied for p in executed[i]))}
    assert BASE << len(numbers) <= np.iinfo(np.uint16).max
    stored = np.zeros((len(tied), BASE << len(numbers)))
    after = np.zeros((len(tied), BASE << len(numbers)), dtype=np.uint16)
    for row, i in enumerate(last_first):
        for level, precision in enumerate(executed[i]):
            bit = 1 << numbers[copy(precision)]
            for seen in range(1 << len(numbers)):
                after[row, seen * BASE + level] = seen | bit
                stored[row, seen * BASE + level] = 0 if seen & bit else size_bytes(layers[i], precision)
    return Shared(last_first, stored, after)


def _lives(
    kernels: Sequence[Kernel], anchors: Sequence[int], precisions: Sequence[Sequence[Precision]], workload: Workload
) -> Lives:
    sizes = [[k.writes * p.activation.bits / 8 for p in precisions[a]] for k, a in zip(kernels, anchors, strict=True)]
    return Lives(
        live_bytes=np.array(sizes),
        anchors=np.array(anchors, dtype=np.intp),
        until=np.array([max(i, k.last_use) for i, k in enumerate(kernels)], dtype=np.intp),
        input_bytes=4.0 * sum(elements(shape) for _, shape in workload.inputs),
        last_input=max((i for i, k in enumerate(kernels) if any(r.source is None for r in k.reads)), default=-1),
    )
