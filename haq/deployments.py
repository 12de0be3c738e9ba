"""What one exported config measured in its real runtime, as it stands in the history of the run that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from haq.accuracy import Measurement


@dataclass(frozen=True)
class Deployment:
    """One artifact on one machine.

    config: id of its config; a finetuned one ends in `-tuned`. runtime: with its version, as profiles name it. machine:
    the CPU and the threads used. artifact_sha256: of the file. latency_ms: median per batch. modelled_ms: on `target`,
    absent when unknown. measurement: of the artifact against FP32 on the same samples. simulated: what the simulation
    has of the same metric there. passed: whether the gate let it through.
    """

    config: str
    target: str
    format: str
    runtime: str
    machine: str
    artifact_sha256: str
    initializer_bytes: int
    file_bytes: int
    batch: int
    latency_ms: float
    measurement: Measurement
    simulated: float
    passed: bool
    modelled_ms: float | None = None

    @property
    def accuracy(self) -> float:
        return self.measurement.accuracy

    def to_json(self) -> dict[str, Any]:
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {**known, "measurement": self.measurement.to_json()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Deployment:
        """The inverse of `to_json`; keys of the history's line that are none of its own are left out."""
        known = {key: value for key, value in raw.items() if key in cls.__dataclass_fields__}
        return cls(**{**known, "measurement": Measurement.from_json(raw["measurement"])})
