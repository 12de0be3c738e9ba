"""What a kernel and a change of format have to do per batch: operations, bytes and launches, before any rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from haq.hardware.legalize import arithmetic_of
from haq.hardware.schedule import Kernel, Read
from haq.hardware.schema import HardwareProfile
from haq.hardware.size import SCALE_BYTES, bias_bytes, weight_bytes
from haq.precision import FP32, Format, Precision
from haq.workload import Gemm, LayerSpec

CLASS_OF_KIND = {"linear": "gemm", "matmul": "attention", "embedding": "lookup"}
"""Layer kind -> class of kernel; every other kind is `conv`, and a depthwise one `depthwise`."""


@dataclass(frozen=True)
class Work:
    """One kernel's work per batch.

    operations: two per multiply-accumulate, padding and idle units counted; in the row `arithmetic` of the profile.
    finished: elements that the vector unit finishes. dram_bytes: off-chip traffic. on_chip_bytes: traffic that stays on
    the chip. score_bytes: inside a fused attention, idle units counted. launches: kernels started, whose class is
    `op_class`. float_inputs: inputs of the network that a layer takes as floats.
    """

    op_class: str
    arithmetic: str = ""
    operations: float = 0.0
    finished: float = 0.0
    dram_bytes: float = 0.0
    on_chip_bytes: float = 0.0
    score_bytes: float = 0.0
    launches: int = 1
    float_inputs: int = 0


@dataclass(frozen=True)
class Tiling:
    """A layer's products as the matrix unit takes them.

    rows, columns, depth: size, and size with padding. blocks: pieces, each of which one unit works on. slots: blocks
    for which the whole waves that they take have room.
    """

    rows: tuple[int, float]
    columns: tuple[int, float]
    depth: tuple[int, float]
    blocks: int
    slots: float
    block_operations: float

    @property
    def operations(self) -> float:
        """Two per multiply-accumulate, padding and idle units counted."""
        return self.slots * self.block_operations


@dataclass(frozen=True)
class Setting:
    """Where work is done. keeps_weights_of: bits at which the weights stay on the chip from one batch to the next."""

    profile: HardwareProfile
    batch: int
    keeps_weights_of: frozenset[int] = frozenset()


def op_class(layer: LayerSpec) -> str:
    """The class of kernel that a layer runs as, one of OP_CLASSES."""
    return "depthwise" if layer.is_depthwise else CLASS_OF_KIND.get(layer.kind, "conv")


def stored_bytes(layer: LayerSpec | None, precision: Precision) -> int:
    """The layer's packed weight with its scales, and its bias."""
    if layer is None:
        return 0
    return bias_bytes(layer, precision) + (weight_bytes(layer.weight, precision.weight) if layer.weight else 0)


def kernel_work(kernel: Kernel, precision: Precision, setting: Setting) -> Work:
    """The kernel in the precision of its anchor, without what the edges to other layers cost."""
    layer, profile, batch = kernel.head, setting.profile, setting.batch
    joins_host = kernel.float_host is not None and not precision.activation.is_integer
    moved = [] if layer is None else [weight_traffic(layer, precision, setting)]
    width = (FP32 if kernel.runs_in_floats else precision).activation.bits / 8
    if not kernel.stays_inside and not joins_host:
        moved.append(_split(batch * (kernel.writes - _ready(kernel)) * width, setting))
    for read in kernel.reads:
        if read.source is None:
            moved.append((batch * read.elements * width, 0.0))
        elif not read.inside and not read.in_place and not (joins_host and read.source == kernel.float_host):
            moved.append(_split(batch * read.elements * width, setting))
    return Work(
        op_class="glue" if layer is None else op_class(layer),
        arithmetic=arithmetic_of(profile, layer, precision) if layer is not None and layer.gemm is not None else "",
        operations=0.0 if layer is None else _operations(layer, setting),
        finished=batch * float(_finished(kernel)),
        dram_bytes=sum(dram for dram, _ in moved),
        on_chip_bytes=sum(on_chip for _, on_chip in moved),
        score_bytes=_score_bytes(kernel, setting),
        launches=0 if kernel.continues or kernel.is_free or joins_host else 1,
        float_inputs=_float_inputs(kernel, precision),
    )


def own_converts(kernel: Kernel, precision: Precision, setting: Setting) -> Iterator[Work]:
    """Changes of format that the kernel needs whatever its neighbours execute.

    The network's inputs arrive in fp32, or quantized where the runtime takes integers as they are; glue that runs in
    floats between integer layers dequantizes and quantizes; an integer operand of a concatenation that others read too
    is rescaled; a layer with a scale per token looks for the largest value of every row first.
    """
    fmt = precision.activation
    arrives_as_it_is = setting.profile.overhead.float_input is not None and fmt.is_integer
    if kernel.runs_in_floats:
        # What other such glue wrote is there in floats already; an input of the network is too.
        coded = sum(read.elements for read in kernel.reads if read.source is not None and not read.left_in_floats)
        yield from convert_work(coded, fmt, FP32.activation, setting)
        yield from convert_work(kernel.writes, FP32.activation, fmt, setting)
    elif not kernel.is_lookup and not arrives_as_it_is:
        inputs = sum(read.elements for read in kernel.reads if read.source is None)
        yield from convert_work(inputs, FP32.activation, fmt, setting)
    if setting.profile.fusion.requantizes and fmt.is_integer:
        for read in kernel.reads:
            if read.rescaled:
                size = setting.batch * read.elements * fmt.bits / 8
                yield _moving("convert", size, size, setting)
    if fmt.per_token and kernel.head is not None and kernel.head.gemm is not None:
        yield _largest_of_rows(kernel.head, kernel.head.gemm, setting)


def _largest_of_rows(layer: LayerSpec, gemm: Gemm, setting: Setting) -> Work:
    """One more pass over what the layer reads, for the scales of its rows; they have to be known before it is rounded.

    So the pass reads fp32, as all that has no codes here, and layers that read one tensor each make it: a runtime that
    shares it between them, or finds the scales in the kernel before, does less. A kernel of its own writes the scales.
    """
    size = setting.batch * layer.input_elements * FP32.activation.bits / 8
    if setting.profile.fusion.convert == "kernel":
        return _moving("convert", size, float(setting.batch * gemm.m * gemm.count * SCALE_BYTES), setting)
    dram, on_chip = _split(size, setting)
    return Work("convert", dram_bytes=dram, on_chip_bytes=on_chip, launches=0)


def edge_work(read: Read, formats: tuple[Format, Format], setting: Setting) -> Iterator[Work]:
    """What a read costs beyond its bytes when the tensor was written in another format; nothing when it was not.

    formats: written in, and worked in by the reader. A fused addition whose operand has another format runs as a
    kernel of its own where formats are changed by kernels; so does the first half of a fused attention. What glue wrote
    that runs in floats anyway is there in floats, too.
    """
    source, target = formats
    if source == target or read.elements == 0 or (read.left_in_floats and target == FP32.activation):
        return
    size = setting.batch * read.elements * source.bits / 8
    if read.inside:
        yield _moving("attention", size, size, setting)
    elif read.joins and setting.profile.fusion.convert == "kernel":
        # The layer's own result is written and read once more, beside the operand in its format.
        again = setting.batch * read.elements * target.bits / 8
        yield _moving("glue", again, again, setting)
        return
    yield from convert_work(read.elements, source, target, setting)


def convert_work(elements: int, source: Format, target: Format, setting: Setting) -> Iterator[Work]:
    """The change of `elements` per sample from one format to another.

    A conversion of its own reads and writes them all; one that the consumer does only reads them in the wider format.
    """
    if source == target or elements == 0:
        return
    read, written = (setting.batch * elements * fmt.bits / 8 for fmt in (source, target))
    if setting.profile.fusion.convert == "kernel":
        yield _moving("convert", read, written, setting)
    elif read > written:
        wide, narrow = _split(read, setting), _split(written, setting)
        extra = [max(0.0, a - b) for a, b in zip(wide, narrow, strict=True)]
        yield Work("convert", dram_bytes=extra[0], on_chip_bytes=extra[1], launches=0)


def weight_traffic(layer: LayerSpec, precision: Precision, setting: Setting) -> tuple[float, float]:
    """Off-chip and on-chip bytes of the weight: a look-up reads one row per token, not the table."""
    if layer.kind == "embedding":
        return setting.batch * layer.output_elements * precision.weight.bits / 8, 0.0
    size = float(stored_bytes(layer, precision))
    return (0.0, size) if precision.weight.bits in setting.keeps_weights_of else (size, 0.0)


def tiling(layer: LayerSpec, gemm: Gemm, setting: Setting) -> Tiling:
    """How the products of a layer that is not depthwise are cut into blocks.

    The batch adds rows to a layer's products, and products to attention's. A fused attention gives each head to one
    unit.
    """
    batch, tile = setting.batch, setting.profile.tile
    if layer.weight is None and setting.profile.attention is not None:
        heads, (m, n, k) = gemm.count * batch, (gemm.m, gemm.n, gemm.k)
        return Tiling((m, m), (n, n), (k, k), heads, _waves(heads, setting), 2.0 * m * n * k)
    rows, count = (gemm.m, gemm.count * batch) if layer.weight is None else (gemm.m * batch, gemm.count)
    across, along, deep = (
        math.ceil(size / side.si) for size, side in ((rows, tile.m), (gemm.n, tile.n), (gemm.k, tile.k))
    )
    depth, blocks = deep * tile.k.si, count * across * along
    return Tiling(
        (rows, across * tile.m.si),
        (gemm.n, along * tile.n.si),
        (gemm.k, depth),
        blocks,
        _waves(blocks, setting),
        2.0 * tile.m.si * tile.n.si * depth,
    )


def stays_on_chip(size_bytes: float, profile: HardwareProfile) -> bool:
    """Whether one tensor of this size need not leave the chip."""
    on_chip = profile.on_chip
    return on_chip is not None and (on_chip.streams or size_bytes <= on_chip.capacity.si * on_chip.resident.si)


def _split(size_bytes: float, setting: Setting) -> tuple[float, float]:
    """An activation's bytes as off-chip and on-chip traffic."""
    return (0.0, size_bytes) if stays_on_chip(size_bytes, setting.profile) else (size_bytes, 0.0)


def _moving(kind: str, read: float, written: float, setting: Setting) -> Work:
    """A kernel that only reads and writes."""
    first, second = _split(read, setting), _split(written, setting)
    return Work(kind, dram_bytes=first[0] + second[0], on_chip_bytes=first[1] + second[1])


def _finished(kernel: Kernel) -> int:
    """Elements per sample that pass the vector unit: a layer's results, or the larger side of a glue op."""
    if kernel.head is not None:
        return kernel.writes
    return max(kernel.writes, sum(read.elements for read in kernel.reads)) - _ready(kernel)


def _ready(kernel: Kernel) -> int:
    """Elements of a concatenation that are in place already."""
    return sum(read.elements for read in kernel.reads if read.in_place)


def _score_bytes(kernel: Kernel, setting: Setting) -> float:
    """Half of the four passes over fp32 scores, spread over the units that the heads keep busy."""
    scores = kernel.writes if kernel.stays_inside else sum(read.elements for read in kernel.reads if read.inside)
    if not scores or kernel.head is None or kernel.head.gemm is None:
        return 0.0
    heads = kernel.head.gemm.count * setting.batch
    return 2 * 4.0 * setting.batch * scores * _waves(heads, setting) / heads


def _float_inputs(kernel: Kernel, precision: Precision) -> int:
    """How many of the network's inputs the kernel's layer takes as floats; indices of a look-up are none."""
    if kernel.head is None or kernel.is_lookup or precision.activation.is_integer:
        return 0
    return sum(read.source is None for read in kernel.reads)


def _waves(blocks: float, setting: Setting) -> float:
    """How many blocks' time the units take: whole waves of them."""
    units = setting.profile.tile.units
    return blocks if units is None else math.ceil(blocks / units.si) * units.si


def _operations(layer: LayerSpec, setting: Setting) -> float:
    """Two per multiply-accumulate of the padded products.

    Depthwise layers do not run on matrix tiles: the class's own, much lower, efficiency says what they reach.
    """
    if layer.gemm is None:
        return 0.0
    return 2.0 * setting.batch * layer.macs if layer.is_depthwise else tiling(layer, layer.gemm, setting).operations
