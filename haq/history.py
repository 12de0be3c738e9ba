"""The history of a run: the append-only `history.jsonl` that is the truth about what was measured.

One JSON object per line, its `kind` is `baseline` (FP32, first), `sensitivity` (what that cost; the table has a file of
its own), `candidate`, `validation` (final front, held-out split) or `deployment` (an artifact in its real runtime).
`timing` holds what differs between two runs with the same seed. Reading needs neither torch nor Optuna.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from haq.accuracy import Failure, Measurement, Scores
from haq.candidate import Candidate
from haq.deployments import Deployment
from haq.errors import InputError

SEARCH, VALIDATION = "search", "validation"
"""The split that chooses, and the one on which nothing is ever chosen."""


@dataclass(frozen=True)
class Baseline:
    """FP32: what every drop and every saving is measured against.

    signature: of the unquantized assignment. scores: by split, per sample or one number; kept because later drops are
    paired with them. costs: target -> figures of the legalized FP32 model there.
    """

    signature: str
    scores: Mapping[str, Scores | float]
    measurements: Mapping[str, Measurement]
    costs: Mapping[str, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {
            "signature": self.signature,
            "scores": {k: s.tolist() if isinstance(s, np.ndarray) else float(s) for k, s in self.scores.items()},
            "measurements": {split: m.to_json() for split, m in self.measurements.items()},
            "costs": {target: dict(costs) for target, costs in self.costs.items()},
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Baseline:
        return cls(
            raw["signature"],
            {k: np.asarray(s, dtype=np.float64) if isinstance(s, list) else s for k, s in raw["scores"].items()},
            {split: Measurement.from_json(m) for split, m in raw["measurements"].items()},
            raw["costs"],
        )


@dataclass(frozen=True)
class History:
    """Everything that one run has found so far. validations: executed signature -> held-out measurement.

    seconds: time spent measuring, over all records. unvalidated: signature -> why its held-out measurement failed.
    sensitivity_forwards: what measuring sensitivities cost, in whole passes of one sample. deployments: oldest first.
    """

    baseline: Baseline | None = None
    candidates: tuple[Candidate, ...] = ()
    validations: Mapping[str, Measurement] | None = None
    seconds: float = 0.0
    unvalidated: Mapping[str, Failure] = field(default_factory=dict)
    sensitivity_forwards: float = 0.0
    deployments: tuple[Deployment, ...] = ()

    @property
    def failed(self) -> dict[str, Failure]:
        """Executed signature -> why measuring it on the search split gave no result."""
        results = (result for candidate in self.candidates for result in candidate.results)
        return {result.executed.signature: result.failure for result in results if result.failure is not None}

    @property
    def measured(self) -> dict[str, Measurement]:
        """Executed signature -> measurement on the search split, stopped early or not, FP32 included."""
        known = {
            result.executed.signature: result.measurement
            for candidate in self.candidates
            for result in candidate.results
            if result.measurement is not None
        }
        if self.baseline is not None:
            known[self.baseline.signature] = self.baseline.measurements[SEARCH]
        return known

    def deployment(self, config: str) -> Deployment | None:
        """The latest of a config."""
        return next((found for found in reversed(self.deployments) if found.config == config), None)

    def validation(self, signature: str) -> Measurement | None:
        """The held-out measurement of executed formats, absent until the front was validated."""
        if self.baseline is not None and signature == self.baseline.signature:
            return self.baseline.measurements.get(VALIDATION)
        return (self.validations or {}).get(signature)


@dataclass(frozen=True)
class Summary:
    """What a run cost. infeasible: on every target by cost alone, hence never measured.

    sample_forwards: samples sent through a network, FP32 and both splits included; a user's function that returns one
    number does not say how many it used and counts as 1. stopped_early: measurements of candidates that ended before
    all samples; mean_share: of the search split that candidates were measured on, on average over their measurements;
    absent when there was none.
    """

    candidates: int
    infeasible: int
    measurements: int
    sample_forwards: int
    seconds: float
    stopped_early: int = 0
    mean_share: float | None = None


def summarize(history: History) -> Summary:
    """Count what the run did."""
    baseline = tuple(history.baseline.measurements.values()) if history.baseline else ()
    # One that was stopped early may have been measured again in full, and cost both.
    results = (result for candidate in history.candidates for result in candidate.results)
    measured = {(r.executed.signature, m.samples): m for r in results if (m := r.measurement) is not None}
    searched = [m for (signature, _), m in measured.items() if not _is_baseline(history, signature)]
    validated = [m for signature, m in (history.validations or {}).items() if not _is_baseline(history, signature)]
    every: list[Measurement | Failure] = [
        *baseline,
        *searched,
        *validated,
        *history.failed.values(),
        *history.unvalidated.values(),
    ]
    forwards = round(history.sensitivity_forwards) + sum(m.samples for m in every)
    unmeasured = sum(all(r.measurement is None and r.failure is None for r in c.results) for c in history.candidates)
    shares = [m.samples / (m.of_samples or m.samples) for m in searched]
    return Summary(
        len(history.candidates),
        unmeasured,
        len(every),
        forwards,
        history.seconds,
        sum(m.is_partial for m in searched),
        sum(shares) / len(shares) if shares else None,
    )


def _is_baseline(history: History, signature: str) -> bool:
    return history.baseline is not None and history.baseline.signature == signature


def read_history(path: Path) -> History:
    """The history in a file; a missing file is an empty history, a half-written last line is left out.

    Raises InputError when a line before the last is damaged.
    """
    if not path.exists():
        return History()
    baseline: Baseline | None = None
    candidates: list[Candidate] = []
    validations: dict[str, Measurement] = {}
    unvalidated: dict[str, Failure] = {}
    deployments: list[Deployment] = []
    seconds = forwards = 0.0
    for raw in _records(path):
        seconds += raw.get("timing", {}).get("measure_s", 0.0)
        if raw["kind"] == "baseline":
            baseline = Baseline.from_json(raw)
        elif raw["kind"] == "candidate":
            candidates.append(Candidate.from_json(raw))
        elif raw["kind"] == "sensitivity":
            forwards = raw["sample_forwards"]
        elif raw["kind"] == "validation" and "failure" in raw:
            unvalidated[raw["signature"]] = Failure(**raw["failure"])
        elif raw["kind"] == "validation":
            validations[raw["signature"]] = Measurement.from_json(raw["measurement"])
        elif raw["kind"] == "deployment":
            deployments.append(Deployment.from_json(raw))
    return History(baseline, tuple(candidates), validations, seconds, unvalidated, forwards, tuple(deployments))


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    found = []
    # What follows the last newline was being written when the run was stopped.
    for number, line in enumerate(lines[:-1], 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise InputError(
                "history is damaged",
                where=f"{path}, line {number}",
                got=line[:40].decode(errors="replace"),
                expected="one JSON object per line",
                way_out="restore the file, or delete the line to lose that candidate",
            ) from None
    return found


class HistoryWriter:
    """Appends records to the history; it changes because the file does. A record is on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        """Open for appending and cut off a half-written last line."""
        self._file: IO[bytes] = path.open("a+b")
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)

    def append(self, kind: str, record: Mapping[str, Any], *, measure_s: float | None = None) -> None:
        """Write one record; `measure_s` is the time spent measuring it."""
        timing = {} if measure_s is None else {"timing": {"measure_s": round(measure_s, 4)}}
        line = json.dumps({"kind": kind, **record, **timing}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
