"""What a recovery is told and what it found: limits, points that were measured, steps with gain and price."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haq.accuracy import Interval
from haq.diagnose.finding import Change, Effect, Outcome

FIGURES = {"max_latency_ms": "latency_ms", "max_size_bytes": "size_bytes"}
"""Limit on a cost -> the figure that it is about."""

UNITS = {"max_drop_points": "points", "max_latency_ms": "ms", "max_size_bytes": "bytes"}


@dataclass(frozen=True)
class Limits:
    """What must hold. max_drop_points: 100 x (FP32 - recovered) on the judged samples; costs are modelled."""

    max_drop_points: float
    max_latency_ms: float | None = None
    max_size_bytes: float | None = None

    @property
    def costs(self) -> dict[str, float]:
        """Figure -> its upper limit, as the allocator takes them."""
        given = {figure: getattr(self, limit) for limit, figure in FIGURES.items()}
        return {figure: bound for figure, bound in given.items() if bound is not None}


@dataclass(frozen=True, eq=False)
class Point:
    """One network that was measured. drop_interval: 95 %, None where the metric gives one number.

    costs: modelled figures by their names in every haq file, unknown ones absent.
    """

    change: Change
    outcome: Outcome
    drop_points: float
    drop_interval: Interval | None
    costs: Mapping[str, float]

    def excess(self, limits: Limits) -> dict[str, float]:
        """Limit -> by how much it is exceeded; empty where all are met. An unknown figure meets no limit."""
        found = {"max_drop_points": self.drop_points - limits.max_drop_points}
        for limit, figure in FIGURES.items():
            if (bound := getattr(limits, limit)) is not None:
                found[limit] = self.costs.get(figure, math.inf) - bound
        return {limit: over for limit, over in found.items() if over > 1e-9 * max(1.0, abs(getattr(limits, limit)))}

    def to_json(self) -> dict[str, Any]:
        raw: dict[str, Any] = {"drop_points": self.drop_points, "value": self.outcome.value, **self.costs}
        if self.drop_interval is not None:
            raw |= {"drop_low": self.drop_interval.low, "drop_high": self.drop_interval.high}
        return {**raw, **change_json(self.change)}


@dataclass(frozen=True)
class Step:
    """One part of the recovery, on top of those before it. effect: what it regains; its price is what it adds."""

    what: str
    change: Change
    effect: Effect
    latency_ms: float | None = None
    size_bytes: float | None = None

    def to_json(self) -> dict[str, Any]:
        price = {"latency_ms": self.latency_ms, "size_bytes": self.size_bytes}
        known = {name: value for name, value in price.items() if value is not None}
        return {"what": self.what, **change_json(self.change), "gain": effect_json(self.effect), "price": known}


@dataclass(frozen=True)
class Vain:
    """Something that was tried and is no part of the result. why: in one clause."""

    what: str
    why: str


@dataclass(frozen=True, eq=False)
class Recovery:
    """The result. after: what meets the limits; where nothing does, the nearest point in accuracy.

    nearest: where limits on drop and cost clash, the cheapest point found that holds the drop, and the one with the
    least drop among those within the costs. samples: judged; forwards: sample-forwards spent here.
    """

    limits: Limits
    before: Point
    after: Point
    steps: tuple[Step, ...]
    vain: tuple[Vain, ...]
    nearest: tuple[Point, ...]
    samples: int
    forwards: float
    seconds: float

    @property
    def met(self) -> bool:
        return not self.after.excess(self.limits)

    def to_json(self) -> dict[str, Any]:
        return {
            "met": self.met,
            "limits": {name: value for name, value in vars(self.limits).items() if value is not None},
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "steps": [step.to_json() for step in self.steps],
            "in_vain": [vars(vain) for vain in self.vain],
            "nearest": [{**point.to_json(), "excess": point.excess(self.limits)} for point in self.nearest],
            "samples": self.samples,
            "sample_forwards": self.forwards,
            "seconds": round(self.seconds, 2),
        }


def change_json(change: Change) -> dict[str, Any]:
    """`repairs` and `layers` as plain data."""
    repairs = [
        {"kind": r.kind, "layer": r.layer, **({} if r.index is None else {"operand": r.index})} for r in change.repairs
    ]
    return {"repairs": repairs, "layers": {layer: str(precision) for layer, precision in change.raised}}


def effect_json(effect: Effect) -> dict[str, Any]:
    """What is known of an effect; what is not finite is not known."""
    raw: dict[str, Any] = {}
    for name, interval in (("points", effect.points_interval), ("nats", effect.nats_interval)):
        if (value := getattr(effect, name)) is not None:
            raw[name] = value
        if interval is not None and math.isfinite(interval.low) and math.isfinite(interval.high):
            raw |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {**raw, "samples": effect.samples}
