"""The work of measured rows as columns, so that a fit only turns rates: rows in, latencies out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from haq.errors import InputError
from haq.hardware.cost import plan
from haq.hardware.figures import Figure
from haq.hardware.roofline import rate
from haq.hardware.schema import HardwareProfile
from haq.hardware.work import Work, edge_work, kernel_work, own_converts
from haq.precision import FP32, Assignment
from haq.workload import Workload

Floats = npt.NDArray[np.float64]

RATES = (
    "arithmetic.",
    "efficiency.",
    "memory.bandwidth",
    "memory.efficiency",
    "memory.overlap",
    "on_chip.bandwidth",
    "vector.rate",
    "attention.bandwidth",
    "overhead.",
)
"""What may be free: rates and fixed times. Capacities and tiles shape the work itself."""


@dataclass(frozen=True)
class Observation:
    """One measured latency. model: what is left out together; executed: a precision for every layer.

    profile: of the device that was timed, options included; its free figures do not matter.
    """

    id: str
    model: str
    profile: HardwareProfile
    workload: Workload
    executed: Assignment
    batch: int
    latency_s: float


@dataclass(frozen=True)
class Columns:
    """The work of the rows of one profile, one entry per kernel or conversion; `row` says whose."""

    profile: HardwareProfile
    row: npt.NDArray[np.intp]
    works: tuple[Work, ...]

    @cached_property
    def _amounts(self) -> Floats:
        """(7, entries): operations, finished elements, off-chip, on-chip and score bytes, launches, float inputs."""
        table = [
            (w.operations, w.finished, w.dram_bytes, w.on_chip_bytes, w.score_bytes, w.launches, w.float_inputs)
            for w in self.works
        ]
        return np.array(table, dtype=np.float64).reshape(-1, 7).T

    @cached_property
    def _kinds(self) -> tuple[tuple[tuple[str, str], ...], npt.NDArray[np.intp]]:
        """The (class, arithmetic) pairs that occur, and which one each entry has."""
        pairs = [(work.op_class, work.arithmetic) for work in self.works]
        distinct = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
        return tuple(distinct), np.array([distinct[pair] for pair in pairs], dtype=np.intp)

    def seconds(self, changed: Mapping[str, float]) -> Floats:
        """(entries,) times, with some of the profile's rates replaced (key -> SI value)."""
        profile, (operations, finished, dram, on_chip, scores, launches, inputs) = self.profile, self._amounts
        figures = self._si

        def value(key: str, absent: float = math.inf) -> float:
            return changed.get(key, figures.get(key, absent))

        def ops_per_s(op_class: str, arithmetic: str) -> float:
            if not arithmetic:
                return math.inf
            row = profile.arithmetic[arithmetic]
            share = value(f"efficiency.{op_class}/{arithmetic}", value(f"efficiency.{op_class}"))
            return value(f"arithmetic.{arithmetic}.peak") * share * rate(row) / row.peak.si

        pairs, which = self._kinds
        compute = operations / np.array([ops_per_s(*pair) for pair in pairs])[which] + finished / value("vector.rate")
        memory = dram / (value("memory.bandwidth") * value("memory.efficiency"))
        memory += on_chip / value("on_chip.bandwidth") + scores / value("attention.bandwidth")
        exposed = (1.0 - value("memory.overlap", 1.0)) * np.minimum(compute, memory)
        fixed = np.array([value(f"overhead.kernel.{op_class}") for op_class, _ in pairs])[which]
        overhead = launches * fixed + inputs * value("overhead.float_input", 0.0)
        return np.asarray(np.maximum(compute, memory) + exposed + overhead)

    @cached_property
    def _si(self) -> dict[str, float]:
        return {key: figure.si for key, figure in self.profile.figures() if figure.is_known and key.startswith(RATES)}


@dataclass(frozen=True)
class Ledger:
    """The work of all rows, by the profile that it runs on."""

    rows: int
    parts: tuple[Columns, ...]

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> Ledger:
        """The work of every observation on its profile."""
        profiles = {id(row.profile): row.profile for row in observations}
        parts = []
        for key, profile in profiles.items():
            listed = [(i, tuple(_works(row))) for i, row in enumerate(observations) if id(row.profile) == key]
            index = np.repeat([i for i, _ in listed], [len(works) for _, works in listed])
            parts.append(Columns(profile, index, tuple(work for _, works in listed for work in works)))
        return cls(len(observations), tuple(parts))

    def seconds(self, changed: Mapping[str, float]) -> Floats:
        """(rows,) latencies, with some of the profiles' rates replaced (key -> SI value)."""
        total = np.zeros(self.rows)
        for part in self.parts:
            total += np.bincount(part.row, part.seconds(changed), minlength=self.rows)
            fixed = changed.get("overhead.inference", part.profile.overhead.inference.si)
            total[np.unique(part.row)] += fixed
        return total


def _works(observation: Observation) -> Iterable[Work]:
    """Everything that the row's latency is made of, but for the fixed time per inference."""
    kernels, setting = plan(observation.workload, observation.profile, observation.batch)
    precisions = [observation.executed.precision(k.anchor) if k.anchor else FP32 for k in kernels]
    for kernel, precision in zip(kernels, precisions, strict=True):
        yield kernel_work(kernel, precision, setting)
        yield from own_converts(kernel, precision, setting)
        for read in kernel.reads:
            if read.source is not None:
                yield from edge_work(read, (precisions[read.source].activation, precision.activation), setting)


def rate_figure(profile: HardwareProfile, key: str) -> Figure:
    """The figure of a rate of the profile; raises InputError for a key that is none."""
    figures = dict(profile.figures())
    if not key.startswith(RATES) or key not in figures:
        known = [name for name in figures if name.startswith(RATES)]
        raise InputError("no rate of the profile", where=profile.name, got=key, expected=f"one of {', '.join(known)}")
    return figures[key]
