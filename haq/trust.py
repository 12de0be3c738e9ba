"""How far a modelled latency can be trusted: where its figures come from, and the error to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haq.hardware.schema import HardwareProfile


@dataclass(frozen=True)
class Trust:
    """confidence: the profile's label. latency_spread: the relative error to expect, 0.5 is +-50 %; None if unknown."""

    confidence: str
    latency_spread: float | None = None

    @classmethod
    def of(cls, profile: HardwareProfile) -> Trust:
        """What a profile says about its latencies."""
        figure = profile.latency_spread
        return cls(profile.confidence, figure.si if figure.is_known else None)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Trust:
        """What a record of `run.json` says about a target; old ones do not name the error."""
        return cls(raw["confidence"], raw.get("latency_spread"))

    def to_json(self) -> dict[str, Any]:
        """`confidence`, and `latency_spread` where it is known."""
        known = {} if self.latency_spread is None else {"latency_spread": self.latency_spread}
        return {"confidence": self.confidence, **known}

    @property
    def error(self) -> str:
        """`+-50 %`, or `unknown`."""
        return "unknown" if self.latency_spread is None else f"+-{100 * self.latency_spread:.0f} %"

    def __str__(self) -> str:
        """`+-50 % (facts only)`, or the label alone where the error is unknown."""
        label = f"({self.confidence})"
        return label if self.latency_spread is None else f"{self.error} {label}"
