"""What kernels and changes of format are looked up by in a table of measured ones."""

from __future__ import annotations

from haq.hardware.legalize import arithmetic_of
from haq.hardware.lookup import Likeness
from haq.hardware.schedule import Kernel, Read
from haq.hardware.work import Setting, op_class
from haq.precision import Format, Precision
from haq.workload import LayerSpec


def of_kernel(kernel: Kernel, precision: Precision, setting: Setting) -> Likeness:
    """What a kernel in the precision of its anchor is looked up by."""
    layer, batch = kernel.head, setting.batch
    if layer is None:
        read = max(1, sum(read.elements for read in kernel.reads))
        touched = float(batch * max(read, kernel.writes))
        group = ("glue", kernel.kind, surroundings(kernel), str(precision.activation.plain))
        return Likeness(group, (1.0, 1.0, 1.0, 1.0, read / kernel.writes, touched))
    if layer.gemm is None:
        group = (op_class(layer), "", "", str(precision.weight.plain))
        return Likeness(group, (1.0, 1.0, 1.0, 1.0, 1.0, float(batch * layer.output_elements)))
    fill = "whole" if layer.weight is None or _fills_blocks(layer, setting) else "ragged"
    group = (op_class(layer), fill, "", arithmetic_of(setting.profile, layer, precision))
    return Likeness(group, _sizes(layer, batch))


def of_change(read: Read, writer: Kernel, formats: tuple[Format, Format], setting: Setting) -> Likeness:
    """What a change of format is looked up by: an image may change its layout with it, rows of tokens do not."""
    beside = "image" if surroundings(writer) == "image" else "rows"
    group = ("convert", "", beside, f"{formats[0].plain}>{formats[1].plain}")
    return Likeness(group, (1.0, 1.0, 1.0, 1.0, 1.0, float(setting.batch * read.elements)))


def surroundings(kernel: Kernel) -> str:
    """What its layer works on: an `image`, `rows` of tokens, attention `heads` or a `table`; empty without a layer."""
    if kernel.beside.startswith("conv"):
        return "image"
    return {"matmul": "heads", "linear": "rows", "embedding": "table"}.get(kernel.beside, "")


def _fills_blocks(layer: LayerSpec, setting: Setting) -> bool:
    """Whether its channels, in and out, are whole blocks of the device: kernels treat the rest quite differently."""
    assert layer.weight is not None
    inputs = layer.input_shapes[0][0 if layer.kind.startswith("conv") else -1]
    return all(channels % setting.profile.tile.n.si == 0 for channels in (inputs, layer.weight.channels))


def _sizes(layer: LayerSpec, batch: int) -> tuple[float, ...]:
    """An attention product has more products in a batch, any other layer more rows."""
    assert layer.gemm is not None
    gemm = layer.gemm
    if layer.weight is None:
        return (float(gemm.m), float(gemm.n), float(gemm.k), float(gemm.count * batch), 1.0, 1.0)
    reuse = gemm.m * gemm.k * gemm.count / layer.input_elements
    return (float(gemm.m * batch), float(gemm.n), float(gemm.k), float(gemm.count), reuse, 1.0)
