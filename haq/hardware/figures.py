"""A number of a profile with its unit, source and status, checked against what its quantity can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Status = Literal["documented", "measured", "derived", "fitted", "secondary", "assumed", "unknown"]


class Strict(BaseModel):
    """A table of a TOML file: no unknown keys, never changed after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(Strict):
    """One number. value: absent exactly when the status is `unknown`. uncertainty: relative, 0.2 is +-20 %.

    documented: by the maker; measured: by the source; derived: by the arithmetic that `source` spells out; fitted: by
    `haq calibrate` to the rows that `source` names; secondary: quoted by a third party; assumed: a choice, whose reason
    `source` gives.
    """

    value: float | None = None
    unit: str
    source: str = Field(min_length=8)
    status: Status
    uncertainty: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _only_the_unknown_has_no_value(self) -> Figure:
        if (self.value is None) != (self.status == "unknown"):
            raise ValueError("a `value`, or status 'unknown' and none")
        return self

    @property
    def is_known(self) -> bool:
        return self.value is not None

    @property
    def si(self) -> float:
        """The value in bytes, seconds, operations per second, joules, watts or plain numbers; it must be known."""
        assert self.value is not None, f"unknown figure: {self.source}"
        return self.value * self.factor

    @property
    def factor(self) -> float:
        """From the figure's unit to SI."""
        return _FACTORS[self.unit]


def rounded(value: float) -> float:
    """Four significant digits: more than any fitted or measured figure deserves, so that rounding moves nothing."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Quantity:
    """What a figure measures: its units with their factor to SI, and the range of sane SI values, ends included."""

    units: Mapping[str, float]
    low: float
    high: float
    kind: str


RATE = Quantity({"TFLOP/s": 1e12, "TOP/s": 1e12, "GFLOP/s": 1e9, "GOP/s": 1e9}, 1e9, 2e16, "an arithmetic rate")
BANDWIDTH = Quantity({"TB/s": 1e12, "GB/s": 1e9, "MB/s": 1e6}, 1e9, 2e13, "a bandwidth")
TIME = Quantity({"ms": 1e-3, "us": 1e-6, "ns": 1e-9}, 0.0, 0.05, "a time")
_BYTES = {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10, "GB": 1e9, "MB": 1e6, "KB": 1e3}
CAPACITY = Quantity(_BYTES, 1e5, 1e12, "a capacity")
OP_ENERGY = Quantity({"pJ": 1e-12}, 1e-15, 1e-10, "an energy per operation")
BIT_ENERGY = Quantity({"pJ/bit": 1e-12, "pJ/byte": 1e-12 / 8}, 1e-14, 2e-10, "an energy per bit")
POWER = Quantity({"W": 1.0}, 0.0, 2000.0, "a power")
FRACTION = Quantity({"fraction": 1.0}, 0.001, 1.0, "a fraction")
SPREAD = Quantity({"fraction": 1.0}, 0.0, 10.0, "a relative spread")
COUNT = Quantity({"count": 1.0}, 1.0, 4096.0, "a count")

_FACTORS = {
    unit: factor
    for quantity in (RATE, BANDWIDTH, TIME, CAPACITY, OP_ENERGY, BIT_ENERGY, POWER, FRACTION, COUNT)
    for unit, factor in quantity.units.items()
}


def _checked(quantity: Quantity) -> Callable[[Figure], Figure]:
    def check(figure: Figure) -> Figure:
        units = ", ".join(quantity.units)
        if figure.unit not in quantity.units:
            raise ValueError(f"{quantity.kind} in {units}, not in {figure.unit!r}")
        if figure.value is None:
            return figure
        unit, factor = figure.unit, quantity.units[figure.unit]
        if not quantity.low <= figure.value * factor <= quantity.high:
            low, high = quantity.low / factor, quantity.high / factor
            raise ValueError(f"{quantity.kind} from {low:g} to {high:g} {unit}, not {figure.value:g} {unit}")
        return figure

    return check


Rate = Annotated[Figure, AfterValidator(_checked(RATE))]
Bandwidth = Annotated[Figure, AfterValidator(_checked(BANDWIDTH))]
Time = Annotated[Figure, AfterValidator(_checked(TIME))]
Capacity = Annotated[Figure, AfterValidator(_checked(CAPACITY))]
OpEnergy = Annotated[Figure, AfterValidator(_checked(OP_ENERGY))]
BitEnergy = Annotated[Figure, AfterValidator(_checked(BIT_ENERGY))]
Power = Annotated[Figure, AfterValidator(_checked(POWER))]
Fraction = Annotated[Figure, AfterValidator(_checked(FRACTION))]
Spread = Annotated[Figure, AfterValidator(_checked(SPREAD))]
Count = Annotated[Figure, AfterValidator(_checked(COUNT))]
