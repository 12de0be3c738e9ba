"""What a quantized network costs on its target, beside what its config asks for: what the cost modes look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Interval
from haq.configfile import executed_assignment
from haq.diagnose.finding import Effect
from haq.hardware.cost import CostBreakdown, estimate
from haq.hardware.legalize import arithmetic_of, execution, meaning
from haq.hardware.schema import Executes, HardwareProfile
from haq.hardware.size import size_bytes
from haq.hardware.table import CostTable, cost_table
from haq.precision import Assignment, Precision
from haq.scaling import PLAIN, Scaling
from haq.trust import Trust
from haq.workload import LayerSpec, Workload

Floats = NDArray[np.float64]
Raised = Mapping[str, Precision]
"""Layer -> the precision that it takes; all other layers stay as they run."""

ROUNDING = 1e-9
"""The share of a latency below which a difference is none."""


@dataclass(frozen=True, eq=False)
class Gap:
    """A layer that does not run as asked. reason: the target's, in its own words; may be empty."""

    layer: LayerSpec
    asked: Precision
    executed: Precision
    reason: str

    @property
    def bits_wider(self) -> int:
        """How many bits more the weight or what is read has than asked, whichever is more; negative if narrower."""
        weight = self.executed.weight.bits - self.asked.weight.bits if self.layer.weight is not None else 0
        activation = self.executed.activation.bits - self.asked.activation.bits
        return max(weight, activation) or min(weight, activation)


@dataclass(frozen=True, eq=False)
class CostEvidence:
    """A network on a target.

    requested: what the config asks for, bit-widths or precisions; executed: what runs. table: of the workload on the
    profile at the batch. promised_ms: the latency that the config states for this target and batch, None where it
    states none. read_back: layer -> what stands in the artifact, as `haq verify` reads it; empty where it was not run.
    """

    workload: Workload
    requested: Assignment
    executed: Assignment
    profile: HardwareProfile
    batch: int
    table: CostTable
    scaling: Scaling = PLAIN
    promised_ms: float | None = None
    read_back: Mapping[str, Precision | None] = field(default_factory=dict)

    @cached_property
    def layers(self) -> Mapping[str, LayerSpec]:
        return {layer.name: layer for layer in self.workload.layers}

    @cached_property
    def now(self) -> CostBreakdown:
        """What the network costs as it runs."""
        return self.breakdown({})

    def breakdown(self, raised: Raised) -> CostBreakdown:
        """The cost of every part with some layers in other precisions, which the target must execute."""
        return estimate(self.workload, self.raised(raised), self.profile, batch=self.batch)

    def raised(self, raised: Raised) -> Assignment:
        return Assignment.of({**self.executed, **raised})

    def saved_ms(self, changes: Sequence[Raised]) -> Floats:
        """(n,) how much less the whole network takes with each of the changes, converts included.

        All are priced at once by the table, or one by one where a precision is what no bit-width means.
        """
        if not changes:
            return np.zeros(0)
        base = self.table.levels(self.executed)
        rows = [] if base is None else [list(base)]
        position = {name: i for i, name in enumerate(self.table.layers)}
        for change in changes:
            level_of = {name: self.table.level_of[position[name]] for name in change}
            if not rows or any(precision not in level_of[name] for name, precision in change.items()):
                return np.array([self.now.latency_ms - self.breakdown(change).latency_ms for change in changes])
            row = list(rows[0])
            for name, precision in change.items():
                row[position[name]] = level_of[name][precision]
            rows.append(row)
        priced = self.table.price(rows).latency_ms
        saved: Floats = priced[0] - priced[1:]
        return saved

    def saved_bytes(self, raised: Raised) -> int:
        """How many bytes fewer are stored with the change; negative where it stores more."""
        return self.now.size_bytes - size_bytes(self.workload, self.raised(raised))

    def interval(self, saved_ms: float) -> Interval | None:
        """The profile's spread around a difference of two modelled latencies; None where it is unknown.

        One network is priced twice by the same rates, so their error is taken to be common: a share of the difference.
        """
        spread = Trust.of(self.profile).latency_spread
        if spread is None:
            return None
        ends = sorted((saved_ms * (1 - spread), saved_ms * (1 + spread)))
        return Interval(ends[0], ends[1])

    def effect(self, saved_ms: float, saved_bytes: int) -> Effect:
        """What undoing a cause regains; bytes are negative where it stores more."""
        return Effect(latency_ms=saved_ms, latency_interval=self.interval(saved_ms), size_bytes=saved_bytes)

    def gaps(self) -> Iterator[Gap]:
        """Every layer that does not run as asked, in order."""
        for layer in self.workload.layers:
            asked = meaning(self.profile, layer, self.requested[layer.name], self.scaling)
            runs = self.executed.precision(layer.name)
            if runs != asked:
                yield Gap(layer, asked, runs, execution(self.profile, layer, asked)[1])

    def wider(self, layer: str) -> tuple[Precision, ...]:
        """What the bit-widths can mean for the layer that is wider than what runs now, narrowest first."""
        options = self.table.entries.executed[self.table.layers.index(layer)]
        now = _width(self.executed.precision(layer))
        return tuple(sorted({p for p in options if _width(p) > now}, key=_width))

    def as_asked_ms(self, gaps: Sequence[Gap]) -> Floats:
        """(n,) how much less the network would take if the target executed each gap's layer as asked.

        All of them together save the sum: a cost is a sum over layers and pairs of layers, of which either end gets one
        half, the mean of what the layer saves as the first to run as asked and as the last (Shapley 1953).
        By the profile's rate of that arithmetic, where it has one; else the multiplication is taken to be as fast as
        what runs now, and only the bytes differ: what nobody publishes is not made up.
        """
        profile = _allowing(self.profile, gaps)
        asked = {gap.layer.name: gap.asked for gap in gaps}

        def latency_ms(raised: Raised) -> float:
            return estimate(self.workload, self.raised(raised), profile, batch=self.batch).latency_ms

        none, every = latency_ms({}), latency_ms(asked)
        saved = []
        for name in asked:
            first = none - latency_ms({name: asked[name]})
            last = latency_ms({other: precision for other, precision in asked.items() if other != name}) - every
            # What is nothing but the rounding of sums in another order is nothing.
            saved.append((first + last) / 2 if abs(first + last) > ROUNDING * none else 0.0)
        return np.array(saved)


def cost_evidence(
    config: Mapping[str, Any],
    workload: Workload,
    profile: HardwareProfile,
    *,
    batch: int | None = None,
    read_back: Mapping[str, Precision | None] | None = None,
) -> CostEvidence:
    """The evidence of a haq.config/v1 content on a target, the config's own or another. batch: else the config's.

    On its own target a config asks for the bit-widths that it was searched with, wherever they lead to the formats it
    lists; elsewhere, and on any other target, for those formats. Raises InputError as `legalize` does.
    """
    about = config["target"]
    is_own = about["name"] == profile.name
    batch = int(about.get("batch", 1)) if batch is None else batch
    scaling = Scaling.of(config.get("quantization", {}).get("ptq", ()))
    said, bits = executed_assignment(config), config.get("requested_bits", {}) if is_own else {}
    requested: dict[str, int | Precision] = {}
    executed: dict[str, Precision] = {}
    for layer in workload.layers:
        listed = meaning(profile, layer, said[layer.name], scaling)
        executed[layer.name] = execution(profile, layer, listed)[0]
        requested[layer.name] = listed
        choice = bits.get(layer.name)
        if isinstance(choice, int) and execution(profile, layer, meaning(profile, layer, choice, scaling))[0] == listed:
            requested[layer.name] = choice
    promised = config.get("metrics", {}).get("latency_ms", {}).get("value") if is_own else None
    return CostEvidence(
        workload,
        Assignment.of(requested),
        Assignment.of(executed),
        profile,
        batch,
        cost_table(workload, profile, batch=batch, scaling=scaling),
        scaling,
        promised if batch == about.get("batch", 1) else None,
        read_back or {},
    )


def time(latency_ms: float) -> str:
    """`12 us` or `1.3 ms`, without its sign."""
    size = abs(latency_ms)
    return f"{size:.3g} ms" if size >= 1 else f"{1e3 * size:.3g} us"


def signed(latency_ms: float) -> str:
    """`12 us less` or `1.3 ms more`."""
    return f"{time(latency_ms)} {'less' if latency_ms < 0 else 'more'}"


def _width(precision: Precision) -> tuple[int, int]:
    return precision.weight.bits, precision.activation.bits


def _allowing(profile: HardwareProfile, gaps: Sequence[Gap]) -> HardwareProfile:
    """The profile of a device that also executes what was asked."""
    rows: dict[tuple[str, Precision], Executes] = {}
    for gap in gaps:
        compute = str(gap.asked.compute)
        row = compute if compute in profile.arithmetic else arithmetic_of(profile, gap.layer, gap.executed)
        rows.setdefault(
            (gap.layer.kind, gap.asked),
            Executes(precisions=(str(gap.asked),), kinds=(gap.layer.kind,), arithmetic=row, source="what was asked"),
        )
    return profile.model_copy(update={"executes": (*profile.executes, *rows.values())})
