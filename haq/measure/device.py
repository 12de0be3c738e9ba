"""What a device brings to be measured: its comparisons, how a bench runs on it, and its profile before the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from haq.hardware.calibration import Free
from haq.hardware.figures import rounded
from haq.hardware.machine import OP_CLASSES
from haq.measure.chain import Bench, Case
from haq.measure.timing import Call

Document = dict[str, Any]
"""A TOML document as nested tables."""

EXPECTED = "expected before the fit, of such devices in general"


@dataclass(frozen=True)
class Streams:
    """(bytes of weights, bench): read at once again, or after a pause that is the first bench; none says: no matter.

    smallest: a bench that takes hardly longer than starting an inference.
    """

    at_once: tuple[tuple[int, Bench], ...]
    paused: tuple[tuple[int, Bench], ...]
    smallest: Bench

    @property
    def benches(self) -> tuple[Bench, ...]:
        return (self.smallest, *(bench for _, bench in (*self.at_once, *self.paused)))


@dataclass(frozen=True)
class Limits:
    """What kernels reached. operations_per_s: the most, by row of [arithmetic]. inference_s: of one that does little.

    bytes_per_s: of weights from memory. cache_bytes: what the cache holds for at once, cache_bytes_per_s: how fast that
    is read. kept_bytes: what it still holds a few milliseconds later.
    """

    operations_per_s: dict[str, float]
    bytes_per_s: float
    cache_bytes: float
    cache_bytes_per_s: float
    kept_bytes: float
    inference_s: float


@dataclass(frozen=True)
class Device:
    """A device that can be measured. title: what it is, runtime: what runs on it.

    ready: makes a bench a call. document: the profile with its free figures, which are `free`, as expected. later:
    what holds in a network and not between chains that follow each other at once, put in after the fit. options: layer
    format -> the option of the profile under which it runs; absent for the profile itself.
    """

    title: str
    runtime: str
    cases: tuple[Case, ...]
    streams: Streams
    ready: Callable[[Bench], Call]
    document: Callable[[Limits], Document]
    free: Callable[[Document], tuple[Free, ...]]
    later: Callable[[Document, Limits], None]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def benches(self) -> tuple[Bench, ...]:
        """Every bench once; those of one comparison stand together."""
        compared = (bench for case in self.cases for bench in case.benches)
        return tuple(dict.fromkeys((*self.streams.benches, *compared)))


def figure(document: Document, key: str) -> Document:
    """The figure at a key such as `overhead.kernel.conv`."""
    table = document
    for name in key.split("."):
        table = table[name]
    return table


def free_rates(document: Document) -> tuple[Free, ...]:
    """What the fit of any device may turn, with what its document expects."""
    keys = (
        *(f"efficiency.{name}" for name in document["efficiency"]),
        "memory.overlap",
        "vector.rate",
        *(f"overhead.kernel.{name}" for name in OP_CLASSES),
    )
    return tuple(Free(keys=(key,), prior=figure(document, key)["value"], factor=3.0, source=EXPECTED) for key in keys)


def new_figure(value: float, unit: str, source: str, status: str, uncertainty: float | None = None) -> Document:
    """A figure of four significant digits."""
    made: Document = {"value": rounded(value), "unit": unit, "source": source, "status": status}
    return made if uncertainty is None else {**made, "uncertainty": uncertainty}


def new_size(size_bytes: int | None, unit: str, factor: int, source: str) -> Document:
    """A capacity, which the system may not tell."""
    if size_bytes is None:
        return {"unit": unit, "source": "the system does not tell", "status": "unknown"}
    return new_figure(size_bytes / factor, unit, source, "documented")
