"""What a hardware profile holds: what bit-widths mean, what the device executes, and the figures that price it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from haq.errors import InputError
from haq.hardware.calibration import Fit
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
    Spread,
    Strict,
    Time,
)
from haq.precision import FORMATS, Precision
from haq.workload import GLUE_KINDS, LAYER_KINDS

Confidence = Literal["measured device", "calibrated", "facts only", "nominal"]
OP_CLASSES = ("conv", "depthwise", "gemm", "attention", "lookup", "glue", "convert")
"""Kernels of one class share a utilization and a fixed cost."""


def _known_kind(kind: str) -> str:
    if kind not in LAYER_KINDS:
        raise ValueError(f"one of {', '.join(LAYER_KINDS)}")
    return kind


def _known_glue(kind: str) -> str:
    if kind not in GLUE_KINDS:
        raise ValueError(f"one of {', '.join(GLUE_KINDS)}")
    return kind


def _known_precision(text: str) -> str:
    try:
        return str(Precision.parse(text))
    except InputError as error:
        raise ValueError(f"weight/activation formats, each one of {', '.join(FORMATS)} ({error})") from error


LayerKind = Annotated[str, AfterValidator(_known_kind)]
GlueKind = Annotated[str, AfterValidator(_known_glue)]
PrecisionName = Annotated[str, AfterValidator(_known_precision)]


class Means(Strict):
    """Which precision a searched bit-width asks for; kinds: only for these layers. The first row that fits counts."""

    bits: Literal[4, 8, 16, 32]
    precision: PrecisionName
    kinds: tuple[LayerKind, ...] = ()


class Executes(Strict):
    """Precisions that the device executes, and for which layers.

    kinds: empty for all. pointwise: convolutions only with a 1x1 kernel. min_outputs: least output channels.
    arithmetic: the row of [arithmetic] that multiplies; the activation format's unless given.
    otherwise: the reason that a layer hears which asks for this and does not qualify.
    """

    precisions: tuple[PrecisionName, ...] = Field(min_length=1)
    kinds: tuple[LayerKind, ...] = ()
    pointwise: bool = False
    min_outputs: int = Field(default=1, ge=1)
    arithmetic: str = ""
    otherwise: str = ""
    source: str = Field(min_length=8)


class Refuses(Strict):
    """Why some precisions are not executed at all."""

    precisions: tuple[PrecisionName, ...] = Field(min_length=1)
    reason: str = Field(min_length=8)
    source: str = Field(min_length=8)


class Arithmetic(Strict):
    """A multiply-accumulate unit. peak: two operations per multiply-accumulate. passes: products per product asked."""

    peak: Rate
    passes: Count | None = None


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
    the activations stay from one batch to the next.
    """

    capacity: Capacity
    bandwidth: Bandwidth
    resident: Fraction
    streams: bool = False
    keeps_weights: bool = False


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
    """

    layer: tuple[GlueKind, ...]
    glue: tuple[GlueKind, ...]
    convert: Literal["kernel", "fused"]
    requantizes: bool = False
    in_place: bool = False
    source: str = Field(min_length=8)


class Energy(Strict):
    """mac: joules of one multiply-accumulate per row of [arithmetic]. static: power drawn whatever runs."""

    mac: Mapping[str, OpEnergy]
    dram: BitEnergy
    on_chip: BitEnergy | None = None
    static: Power | None = None


class HardwareProfile(Strict):
    """One target device. name: as asked for, options included. device_unit: what one latency is of.

    latency_spread: the relative error to expect of a modelled latency.
    """

    name: str
    title: str
    device_unit: str
    runtime: str
    confidence: Confidence
    confidence_note: str = Field(min_length=8)
    latency_spread: Spread
    means: tuple[Means, ...]
    executes: tuple[Executes, ...]
    refuses: tuple[Refuses, ...] = ()
    arithmetic: Mapping[str, Arithmetic]
    efficiency: Mapping[str, Fraction]
    memory: Memory
    on_chip: OnChip | None = None
    vector: Vector | None = None
    attention: Attention | None = None
    tile: Tile
    overhead: Overhead
    fusion: Fusion
    energy: Energy | None = None
    fits: tuple[Fit, ...] = ()

    @field_validator("efficiency")
    @classmethod
    def _each_multiplying_class_has_one(cls, efficiency: Mapping[str, Figure]) -> Mapping[str, Figure]:
        expected = ("conv", "depthwise", "gemm", "attention")
        if set(efficiency) != set(expected):
            raise ValueError(f"exactly the keys {', '.join(expected)}, not {', '.join(efficiency)}")
        return efficiency

    @model_validator(mode="after")
    def _is_complete(self) -> HardwareProfile:
        for bits in (4, 8, 16, 32):
            if not any(row.bits == bits and not row.kinds for row in self.means):
                raise ValueError(f"a row of [[means]] for bits = {bits} without kinds")
        for row in self.executes:
            for name in row.precisions:
                key = row.arithmetic or str(Precision.parse(name).compute)
                if key not in self.arithmetic:
                    raise ValueError(f"a table [arithmetic.{key}], which executes {name} needs")
        for kind in LAYER_KINDS:
            if not any((not row.kinds or kind in row.kinds) and _is_unconditional(row) for row in self.executes):
                raise ValueError(f"a row of [[executes]] that every {kind} can take")
        return self

    @model_validator(mode="after")
    def _is_in_proportion(self) -> HardwareProfile:
        """A unit error of 1000 leaves the ranges of real machines, which balance arithmetic and memory."""
        unknown = [
            where for where, figure in self.figures() if not figure.is_known and not where.startswith(_MAY_BE_UNKNOWN)
        ]
        if unknown:
            raise ValueError(f"a value for {unknown[0]}: without it nothing can be priced")
        bandwidth = self.memory.bandwidth.si
        rates = {name: row.peak.si for name, row in self.arithmetic.items()}
        for name, rate in rates.items():
            if not 0.02 <= rate / bandwidth <= 5000:
                raise ValueError(
                    f"arithmetic.{name}.peak over memory.bandwidth from 0.02 to 5000 operations per byte, "
                    f"not {rate / bandwidth:.4g}: is a unit wrong?"
                )
        fastest, slowest = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
        if rates[fastest] > 200 * rates[slowest]:
            raise ValueError(
                f"arithmetic.{fastest}.peak at most 200 times arithmetic.{slowest}.peak, "
                f"not {rates[fastest] / rates[slowest]:.4g} times: is a unit wrong?"
            )
        if self.on_chip is not None and self.on_chip.bandwidth.is_known and self.on_chip.bandwidth.si < bandwidth:
            raise ValueError("on_chip.bandwidth at least memory.bandwidth: is a unit wrong?")
        return self

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number of the profile with its key."""
        yield from _figures_in("", self)


_MAY_BE_UNKNOWN = ("on_chip.", "memory.capacity", "latency_spread", "energy.")


def _is_unconditional(row: Executes) -> bool:
    return not row.pointwise and row.min_outputs == 1


def _figures_in(where: str, value: object) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield where, value
    elif isinstance(value, Strict):
        for key in type(value).model_fields:
            yield from _figures_in(f"{where}.{key}".lstrip("."), getattr(value, key))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _figures_in(f"{where}.{key}".lstrip("."), item)
