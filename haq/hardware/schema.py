"""What a hardware profile holds: what bit-widths mean, what the device executes, and the figures that price it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from haq.errors import InputError
from haq.hardware.calibration import Fit
from haq.hardware.figures import Figure, Fraction, Spread, Strict
from haq.hardware.lookup import Correction, Lookup
from haq.hardware.machine import (
    AccumulatorName,
    Arithmetic,
    Attention,
    Energy,
    Fusion,
    Memory,
    OnChip,
    Overhead,
    Tile,
    Vector,
)
from haq.precision import FORMATS, Precision
from haq.workload import LAYER_KINDS

Confidence = Literal["measured device", "calibrated", "facts only", "nominal"]


def _known_kind(kind: str) -> str:
    if kind not in LAYER_KINDS:
        raise ValueError(f"one of {', '.join(LAYER_KINDS)}")
    return kind


def _known_precision(text: str) -> str:
    try:
        return str(Precision.parse(text))
    except InputError as error:
        raise ValueError(f"weight/activation formats, each one of {', '.join(FORMATS)} ({error})") from error


LayerKind = Annotated[str, AfterValidator(_known_kind)]
PrecisionName = Annotated[str, AfterValidator(_known_precision)]


class Means(Strict):
    """Which precision a searched bit-width asks for; kinds: only for these layers. The first row that fits counts."""

    bits: Literal[4, 8, 16, 32]
    precision: PrecisionName
    kinds: tuple[LayerKind, ...] = ()


class Executes(Strict):
    """Precisions that the device executes, and for which layers. Finer scales are precisions: `int4g64/fp16`.

    kinds: empty for all. pointwise: convolutions only with a 1x1 kernel. min_outputs: least output channels.
    inputs_multiple_of, outputs_multiple_of: of kernels that take whole blocks of a channel's inputs and of outputs.
    arithmetic: the row of [arithmetic] that multiplies; the activation format's unless given.
    otherwise: the reason that a layer hears which asks for this and does not qualify.
    """

    precisions: tuple[PrecisionName, ...] = Field(min_length=1)
    kinds: tuple[LayerKind, ...] = ()
    pointwise: bool = False
    min_outputs: int = Field(default=1, ge=1)
    inputs_multiple_of: int = Field(default=1, ge=1)
    outputs_multiple_of: int = Field(default=1, ge=1)
    arithmetic: str = ""
    otherwise: str = ""
    source: str = Field(min_length=8)


class Refuses(Strict):
    """Why some precisions are not executed at all."""

    precisions: tuple[PrecisionName, ...] = Field(min_length=1)
    reason: str = Field(min_length=8)
    source: str = Field(min_length=8)


class HardwareProfile(Strict):
    """One target device. name: as asked for, options included. device_unit: what one latency is of.

    latency_spread: the relative error to expect of a modelled latency. efficiency: the share of the peak that a class
    of kernels reaches; `conv/int8` is for one row of [arithmetic] alone. accumulators: row of [arithmetic] -> what it
    sums integer products in, `int32`, `intN` or `int16-pairs`; one without is wide enough for any sum.
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
    accumulators: Mapping[str, AccumulatorName] = {}
    memory: Memory
    on_chip: OnChip | None = None
    vector: Vector | None = None
    attention: Attention | None = None
    tile: Tile
    overhead: Overhead
    fusion: Fusion
    energy: Energy | None = None
    fits: tuple[Fit, ...] = ()
    lookup: Lookup | None = None
    _correction: Correction | None = PrivateAttr(default=None)

    @field_validator("efficiency")
    @classmethod
    def _each_multiplying_class_has_one(cls, efficiency: Mapping[str, Figure]) -> Mapping[str, Figure]:
        expected = ("conv", "depthwise", "gemm", "attention")
        if {key for key in efficiency if "/" not in key} != set(expected):
            raise ValueError(f"the keys {', '.join(expected)}, not {', '.join(efficiency)}")
        for key in efficiency:
            if key.partition("/")[0] not in expected:
                raise ValueError(f"a class of {', '.join(expected)} before the slash, not {key!r}")
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
        for key in self.efficiency:
            if "/" in key and key.partition("/")[2] not in self.arithmetic:
                raise ValueError(f"a row of [arithmetic] after the slash of efficiency {key!r}")
        for key in self.accumulators:
            if key not in self.arithmetic:
                raise ValueError(f"a row of [arithmetic] before the accumulator of {key!r}")
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

    def share_of_peak(self, op_class: str, arithmetic: str) -> float:
        """The efficiency of a class of kernels in one row of [arithmetic]."""
        own = self.efficiency.get(f"{op_class}/{arithmetic}")
        return (own if own is not None else self.efficiency[op_class]).si

    @property
    def correction(self) -> Correction | None:
        """The measured table that its times are corrected by, if it names one."""
        assert self.lookup is None or self._correction is not None, f"the table of {self.name} is not attached"
        return None if self.lookup is None else self._correction

    def attach(self, correction: Correction) -> HardwareProfile:
        """The profile with the table that it names."""
        copy = self.model_copy()
        copy._correction = correction
        return copy

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number of the profile with its key."""
        yield from _figures_in("", self)


_MAY_BE_UNKNOWN = ("on_chip.", "memory.capacity", "latency_spread", "energy.")


def _is_unconditional(row: Executes) -> bool:
    return not row.pointwise and row.min_outputs == row.inputs_multiple_of == row.outputs_multiple_of == 1


def _figures_in(where: str, value: object) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield where, value
    elif isinstance(value, Strict):
        for key in type(value).model_fields:
            yield from _figures_in(f"{where}.{key}".lstrip("."), getattr(value, key))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _figures_in(f"{where}.{key}".lstrip("."), item)
