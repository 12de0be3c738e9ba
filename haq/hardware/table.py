"""Prices whole populations: every kernel at every level and every read at every pair of levels is priced once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from haq.errors import InputError
from haq.hardware.entries import Entries, Floats, fill
from haq.hardware.quads import Quads, pack
from haq.hardware.schema import HardwareProfile
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.scaling import PLAIN, Scaling
from haq.workload import Workload

Integers = NDArray[np.int64]

CHUNK = 8192
"""Candidates priced at a time, so that what is between stays in the cache. Results do not depend on it."""


@dataclass(frozen=True)
class Figures:
    """The modelled cost of many candidates, one entry each, as `CostBreakdown` has it for one.

    energy_mj: NaN where a candidate executes something whose energy has no source; absent in `row`. macs: of all alike.
    """

    latency_ms: Floats
    size_bytes: Integers
    activation_peak_bytes: Integers
    traffic_bytes: Floats
    energy_mj: Floats
    macs: int

    def by_name(self) -> dict[str, NDArray[Any]]:
        """The figures that differ between candidates, by their names in every haq file."""
        return {
            "latency_ms": self.latency_ms,
            "size_bytes": self.size_bytes,
            "activation_peak_bytes": self.activation_peak_bytes,
            "traffic_bytes": self.traffic_bytes,
            "energy_mj": self.energy_mj,
        }

    def row(self, candidate: int) -> dict[str, float]:
        """One candidate's figures by their names in every haq file; what is unknown is absent."""
        totals = (
            float(self.latency_ms[candidate]),
            float(self.traffic_bytes[candidate]),
            float(self.energy_mj[candidate]),
        )
        return _named(totals, int(self.size_bytes[candidate]), int(self.activation_peak_bytes[candidate]), self.macs)


@dataclass(frozen=True)
class CostTable:
    """The costs of one workload on one target at one batch size.

    A candidate is one level per layer, an index into `bits`, in the order of `layers` (the workload's layer_names). An
    entry is the cost of what the target executes when asked for that bit-width, so nothing needs to be legalized first.
    level_of: per layer, the level of a bit-width, and of a precision that some level is executed in.
    """

    target: str
    batch: int
    layers: tuple[str, ...]
    bits: tuple[int, ...]
    level_of: tuple[Mapping[int | Precision, int], ...]
    macs: int
    entries: Entries
    quads: Quads

    def levels(self, assignment: Assignment) -> tuple[int, ...] | None:
        """The levels of an assignment of all layers, requested bits or executed precisions; None where one has none."""
        found = []
        for layer, level_of in zip(self.layers, self.level_of, strict=True):
            choice = assignment[layer]
            if choice not in level_of:
                return None
            found.append(level_of[choice])
        return tuple(found)

    def price(self, levels: ArrayLike) -> Figures:
        """The figures of every candidate, each the same whatever stands beside it.

        levels: (candidates, layers) integers. Equal to `estimate` up to the rounding of sums in another order. Raises
        InputError on another shape or type and on a level that is no index into `bits`.
        """
        asked = self._checked(levels)
        totals, peak_bytes = np.empty((4, len(asked))), np.empty(len(asked))
        for start in range(0, len(asked), CHUNK):
            rows = slice(start, start + CHUNK)
            by_layer = np.zeros((len(self.layers) + 1, len(asked[rows])), dtype=np.uint8)
            by_layer[:-1] = asked[rows].T
            codes = self.quads.codes(by_layer)
            totals[:, rows] = self.quads.totals(codes).T
            for shared in self.entries.shared:
                totals[3, rows] += shared.total_bytes(by_layer)
            peak_bytes[rows] = self.quads.peak_bytes(codes)
        return Figures(
            latency_ms=totals[0],
            size_bytes=np.rint(totals[3]).astype(np.int64),
            activation_peak_bytes=np.rint(self.batch * peak_bytes).astype(np.int64),
            traffic_bytes=totals[1],
            energy_mj=totals[2],
            macs=self.macs,
        )

    def figures(self, levels: Sequence[int]) -> dict[str, float]:
        """One candidate's figures, digit for digit what `estimate` gives: its sums in its order.

        levels: one per layer; raises InputError as `price` does.
        """
        entries = self.entries
        extended = np.append(self._checked([levels])[0], 0).astype(np.intp)
        kernels = entries.kernels[np.arange(len(entries.anchors)), extended[entries.anchors]].T.tolist()
        ends = extended[entries.ends]
        reads = entries.reads[np.arange(len(ends)), ends[:, 0], ends[:, 1]].T.tolist()
        latency_ms = entries.per_inference_ms + sum(kernels[0]) + sum(reads[0])
        by_layer = extended.astype(np.uint8)[:, None]
        own_bytes = int(entries.stored_bytes[np.arange(len(levels)), extended[:-1]].sum())
        shared_bytes = sum(int(shared.total_bytes(by_layer)[0]) for shared in entries.shared)
        return _named(
            (latency_ms, sum(kernels[1]) + sum(reads[1]), sum(kernels[2] + reads[2])),
            entries.fixed_bytes + own_bytes + shared_bytes,
            round(self.batch * entries.lives.peak_bytes(extended)),
            self.macs,
        )

    def _checked(self, levels: ArrayLike) -> NDArray[np.integer]:
        asked = np.asarray(levels)
        expected = f"integers of shape (candidates, {len(self.layers)}) from 0 to {len(self.bits) - 1}"
        if asked.ndim != 2 or asked.shape[1] != len(self.layers):
            raise InputError("levels have another shape", where=self.target, got=asked.shape, expected=expected)
        if not np.issubdtype(asked.dtype, np.integer):
            raise InputError("levels are no integers", where=self.target, got=str(asked.dtype), expected=expected)
        if asked.size and not 0 <= asked.min() <= asked.max() < len(self.bits):
            wrong = asked[(asked < 0) | (asked >= len(self.bits))][0]
            raise InputError("no such level", where=self.target, got=int(wrong), expected=expected)
        return asked


def cost_table(
    workload: Workload,
    profile: HardwareProfile,
    *,
    batch: int,
    bits: Sequence[int] = BIT_WIDTHS,
    scaling: Scaling = PLAIN,
) -> CostTable:
    """The table of a workload on a target, filled by the formulas of `estimate`; costs a few calls of it.

    bits: the bit-width of each level, ascending; raises InputError unless they are some of BIT_WIDTHS. scaling: the
    scales that they ask for.
    """
    if not bits or list(bits) != [b for b in BIT_WIDTHS if b in bits]:
        raise InputError("bit-widths of a cost table", got=list(bits), expected=f"some of {BIT_WIDTHS}, ascending")
    entries = fill(workload, profile, batch, bits, scaling)
    by_bits: dict[int | Precision, int] = {b: level for level, b in enumerate(bits)}
    return CostTable(
        target=profile.name,
        batch=batch,
        layers=workload.layer_names,
        bits=tuple(bits),
        level_of=tuple({**by_bits, **{p: level for level, p in enumerate(row)}} for row in entries.executed),
        macs=batch * workload.macs,
        entries=entries,
        quads=pack(entries),
    )


def _named(totals: tuple[float, float, float], size_bytes: int, peak_bytes: int, macs: int) -> dict[str, float]:
    """The figures as `CostBreakdown.figures` names them. totals: latency_ms, traffic_bytes, energy_mj."""
    figures = {
        "latency_ms": totals[0],
        "size_bytes": size_bytes,
        "activation_peak_bytes": peak_bytes,
        "traffic_bytes": totals[1],
        "macs": macs,
    }
    return figures if np.isnan(totals[2]) else {**figures, "energy_mj": totals[2]}
