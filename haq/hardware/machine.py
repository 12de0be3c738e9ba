"""The physical parts of a hardware profile: arithmetic, memories, tiles, fixed times, fusion and energy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from haq.errors import InputError
from haq.hardware.figures import (
    Bandwidth,
    BitEnergy,
    Capacity,
    Count,
    Figure,
    Fraction,
    OpEnergy,
    Power,
    Rate,
    Strict,
    Time,
)
from haq.workload import GLUE_KINDS

OP_CLASSES = ("conv", "depthwise", "gemm", "attention", "lookup", "glue", "convert")
"""Kernels of one class share a utilization and a fixed cost."""


def _known_glue(kind: str) -> str:
    if kind not in GLUE_KINDS:
        raise ValueError(f"one of {', '.join(GLUE_KINDS)}")
    return kind


GlueKind = Annotated[str, AfterValidator(_known_glue)]

PAIRS = "int16-pairs"
"""Two neighbouring products of u8 and s8 are added in a saturating int16 and these sums in an int32 (vpmaddubsw, SSSE3
to AVX-512BW), where VNNI adds four products in an int32: Intel Intrinsics Guide; oneDNN, "Nuances of int8
computations"."""


def accumulator_bits(named: str) -> int:
    """Of a signed accumulator: 32 of `int32` and of what `int16-pairs` go into; raises InputError on an unknown one."""
    found = re.fullmatch(r"int(\d+)", named)
    if named != PAIRS and (found is None or not 2 <= int(found[1]) <= 63):
        raise InputError("unknown accumulator", got=named, expected=f"int32, intN with 2 to 63 bits, or {PAIRS}")
    return 32 if found is None else int(found[1])


def _known_accumulator(named: str) -> str:
    try:
        accumulator_bits(named)
    except InputError as error:
        raise ValueError(str(error)) from error
    return named


class Arithmetic(Strict):
    """A multiply-accumulate unit. peak: two operations per multiply-accumulate. passes: products per product asked.

    accumulator: what products of integers are summed in: `int32`, `intN` with any other number of bits, `int16-pairs`.
    """

    peak: Rate
    passes: Count | None = None
    accumulator: Annotated[str, AfterValidator(_known_accumulator)] = "int32"


class Memory(Strict):
    """Off-chip memory. efficiency: the share of the bandwidth that kernels reach.

    overlap: the share of the shorter of arithmetic and memory time that hides behind the longer one; all of it, as in
    the roofline, unless given.
    """

    bandwidth: Bandwidth
    efficiency: Fraction
    capacity: Capacity
    overlap: Fraction | None = None


class OnChip(Strict):
    """Memory in which an activation may stay between two kernels; with an unknown bandwidth reading it there is free.

    resident: the share of the capacity that one tensor may take. streams: the compiler cuts larger ones into pieces
    that pass from kernel to kernel, so that no activation goes off-chip. keeps_weights: whether weights that fit beside
    the activations stay from one batch to the next. kept: how much stays so long; all of the capacity unless given.
    """

    capacity: Capacity
    bandwidth: Bandwidth
    resident: Fraction
    streams: bool = False
    keeps_weights: bool = False
    kept: Capacity | None = None


class Vector(Strict):
    """The unit that finishes results (scale, bias, activation) and runs glue: elements per second, in any format."""

    rate: Rate


class Attention(Strict):
    """A kernel that keeps the scores of an attention inside: both products and the softmax between them.

    bandwidth: at which scores, in fp32, are written and read four times. Each head of a sample takes one unit.
    """

    bandwidth: Bandwidth


class Tile(Strict):
    """The block of a matrix product that hardware works on: dimensions are padded to multiples of it.

    units: how many blocks run at a time, so that a product takes whole waves of them; absent for a single unit.
    """

    m: Count
    n: Count
    k: Count
    units: Count | None = None


class Overhead(Strict):
    """Fixed times: per inference, and per kernel of each class.

    float_input: what an input costs that a layer takes as a float, where the runtime takes integers as they are.
    """

    inference: Time
    float_input: Time | None = None
    kernel: Mapping[str, Time]

    @field_validator("kernel")
    @classmethod
    def _each_class_has_one(cls, kernel: Mapping[str, Figure]) -> Mapping[str, Figure]:
        if set(kernel) != set(OP_CLASSES):
            raise ValueError(f"exactly the keys {', '.join(OP_CLASSES)}, not {', '.join(kernel)}")
        return kernel


class Fusion(Strict):
    """What the compiler merges. layer: glue kinds that end a layer's kernel. glue: kinds that end a glue kernel.

    convert: a change of format is a `kernel` of its own, or `fused` into the consumer, which then reads the wider one.
    requantizes: whether an integer operand of a concatenation is rescaled by a kernel of its own when something else
    reads it too. in_place: whether operands of a concatenation that nothing else reads are written where they belong.
    float_glue: kinds without an integer kernel: between integer layers they dequantize, run and quantize again.
    float_conv: kinds that end a convolution's kernel where it computes in floats, and run on their own in integers.
    """

    layer: tuple[GlueKind, ...]
    glue: tuple[GlueKind, ...]
    convert: Literal["kernel", "fused"]
    requantizes: bool = False
    in_place: bool = False
    float_glue: tuple[GlueKind, ...] = ()
    float_conv: tuple[GlueKind, ...] = ()
    source: str = Field(min_length=8)


class Energy(Strict):
    """mac: joules of one multiply-accumulate per row of [arithmetic]. static: power drawn whatever runs."""

    mac: Mapping[str, OpEnergy]
    dram: BitEnergy
    on_chip: BitEnergy | None = None
    static: Power | None = None
