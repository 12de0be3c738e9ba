"""An assignment after evaluation, per target, as it stands in the history and on the front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from haq.accuracy import Failure, Measurement
from haq.precision import Assignment, Precision


@dataclass(frozen=True)
class Fallback:
    """A request that the device cannot execute and what it executes instead."""

    layer: str
    requested: Precision
    executed: Precision
    reason: str

    def to_json(self) -> dict[str, str]:
        return {
            "layer": self.layer,
            "requested": str(self.requested),
            "executed": str(self.executed),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, str]) -> Fallback:
        return cls(raw["layer"], Precision.parse(raw["requested"]), Precision.parse(raw["executed"]), raw["reason"])


def config_id(executed: Assignment, target: str) -> str:
    """12 hex digits that name an executed assignment on a target."""
    return Assignment.of({**executed, f"target:{target}": 0}).signature[:12]


@dataclass(frozen=True)
class TargetResult:
    """One candidate on one target. costs: the figures of decision 11 by name, unknown ones absent.

    measurement: on the search split; absent when the candidate was cheaply infeasible, or when measuring it gave no
    result: then failure says why. violations: one sentence each, the failure's included.
    """

    target: str
    executed: Assignment
    fallbacks: tuple[Fallback, ...]
    costs: Mapping[str, float]
    measurement: Measurement | None = None
    violations: tuple[str, ...] = ()
    failure: Failure | None = None

    @property
    def is_feasible(self) -> bool:
        return not self.violations

    @property
    def is_measured_in_full(self) -> bool:
        return self.measurement is not None and not self.measurement.is_partial

    @property
    def config_id(self) -> str:
        """Names the config file."""
        return config_id(self.executed, self.target)

    def to_json(self) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "target": self.target,
            "signature": self.executed.signature,
            "executed": self.executed.to_json(),
            "fallbacks": [f.to_json() for f in self.fallbacks],
            "costs": dict(self.costs),
            "violations": list(self.violations),
        }
        if self.failure is not None:
            raw["failure"] = asdict(self.failure)
        return raw if self.measurement is None else {**raw, "measurement": self.measurement.to_json()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TargetResult:
        return cls(
            raw["target"],
            Assignment.from_json(raw["executed"]),
            tuple(Fallback.from_json(f) for f in raw["fallbacks"]),
            raw["costs"],
            Measurement.from_json(raw["measurement"]) if "measurement" in raw else None,
            tuple(raw["violations"]),
            Failure(**raw["failure"]) if "failure" in raw else None,
        )


@dataclass(frozen=True)
class Candidate:
    """One asked assignment (bit-widths) and its result on every target.

    origin: `baseline`, `seed:...` or a sampler's name.
    """

    number: int
    origin: str
    requested: Assignment
    results: tuple[TargetResult, ...]

    def on(self, target: str) -> TargetResult:
        """The result on one target."""
        return next(r for r in self.results if r.target == target)

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "origin": self.origin,
            "requested": self.requested.to_json(),
            "targets": [r.to_json() for r in self.results],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Candidate:
        return cls(
            raw["number"],
            raw["origin"],
            Assignment.from_json(raw["requested"]),
            tuple(TargetResult.from_json(r) for r in raw["targets"]),
        )
