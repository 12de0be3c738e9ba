"""Reads off a run's history what was found after how many evaluations, and ends a run whose evaluations are spent.

One evaluation is one pass over the whole search split, counted in sample-forwards: a candidate that is stopped early
costs the samples that it took. FP32's own pass is not counted, it is every sampler's. What a run spent on anything but
FP32, candidates and validation (a sensitivity pass) is counted as spent before its first candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from haq.accuracy import Failure, Measurement
from haq.candidate import Candidate
from haq.engine.events import CandidateDone, Event
from haq.front import Point
from haq.history import SEARCH, History, summarize
from haq.pareto import hypervolume, non_dominated


class BudgetSpent(Exception):
    """The run has used its evaluations; its directory holds all of it."""


class Forwards:
    """Counts the sample-forwards of candidates on the search split. It changes with every candidate that it is told."""

    def __init__(self, fp32: str) -> None:
        """fp32: the signature of the unquantized assignment, whose pass is not counted."""
        self._fp32, self._samples = fp32, dict[str, int]()

    def of(self, candidate: Candidate) -> int:
        """The sample-forwards that the candidate added: none for what was already known, the rest of what was begun."""
        added = 0
        for result in candidate.results:
            found, signature = result.measurement or result.failure, result.executed.signature
            if found is not None and signature != self._fp32:
                known = self._samples.get(signature, 0)
                added += max(0, found.samples - known)
                self._samples[signature] = max(found.samples, known)
        return added


class Budget:
    """A progress function that ends a run by raising BudgetSpent. It counts, so it changes.

    What comes before the first candidate is not in events: curves count it and cut off what is over the budget.
    """

    def __init__(self, forwards: int, fp32: str, before: History) -> None:
        """fp32: as Forwards takes it. before: what an earlier start of the run left."""
        self._counter = Forwards(fp32)
        self._left = forwards - sum(self._counter.of(candidate) for candidate in before.candidates)

    def __call__(self, event: Event) -> None:
        if isinstance(event, CandidateDone):
            self._left -= self._counter.of(event.candidate)
            if self._left <= 0:
                raise BudgetSpent


def curve(history: History, target: str, reference: Sequence[float]) -> pd.DataFrame:
    """A row per candidate: `evaluations` spent so far, and the `hypervolume` of what was measured in full by then.

    reference: (bytes, ms, points), below which the volume is taken.
    """
    assert history.baseline is not None, "a run without a baseline has found nothing"
    samples = history.baseline.measurements[SEARCH].samples
    counter = Forwards(history.baseline.signature)
    added = [counter.of(candidate) for candidate in history.candidates]
    spent = np.cumsum([_before(history, sum(added)), *added])[1:] / samples
    front, volumes, volume = np.empty((0, 3)), [], 0.0
    for candidate in history.candidates:
        result = candidate.on(target)
        if result.measurement is not None and result.is_feasible and result.measurement.samples == samples:
            rows = np.vstack([front, Point(candidate, result).losses])
            kept = rows[non_dominated(rows)]
            if not np.array_equal(kept, front):
                front, volume = kept, hypervolume(kept, reference)
        volumes.append(volume)
    return pd.DataFrame({"evaluations": spent, "hypervolume": volumes})


def volume_at(found: pd.DataFrame, evaluations: float) -> float:
    """The hypervolume that a curve had reached when so many evaluations were spent."""
    within = found[found.evaluations <= evaluations + 1e-9]
    return float(within.hypervolume.iloc[-1]) if len(within) else 0.0


def reached_after(found: pd.DataFrame, volume: float) -> float:
    """The evaluations after which a curve is at the hypervolume; NaN when it never is."""
    there = found[found.hypervolume >= volume]
    return float(there.evaluations.iloc[0]) if len(there) else float("nan")


def _before(history: History, searched: int) -> int:
    """The sample-forwards that are none of FP32's, the candidates' or validation's."""
    assert history.baseline is not None
    known: list[Measurement | Failure] = [
        *history.baseline.measurements.values(),
        *(history.validations or {}).values(),
        *history.unvalidated.values(),
    ]
    return summarize(history).sample_forwards - searched - sum(found.samples for found in known)
