"""Reads off a run's history what was found after how many evaluations, and ends a run whose evaluations are spent.

One evaluation is one pass over the whole search split, counted in sample-forwards: a candidate that is stopped early
costs the samples that it took, and all of them once more where it is measured again. FP32's own pass is not counted, it
is every sampler's. What measuring sensitivities took is counted as spent before the first candidate, whether or not a
cache spared it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from haq.candidate import Candidate
from haq.engine.events import CandidateDone, Event, SensitivityMeasured
from haq.front import Point
from haq.history import SEARCH, History
from haq.pareto import hypervolume, non_dominated


class BudgetSpent(Exception):
    """The run has used its evaluations; its directory holds all of it."""


class Forwards:
    """Counts the sample-forwards of candidates on the search split. It changes with every candidate that it is told."""

    def __init__(self, fp32: str) -> None:
        """fp32: the signature of the unquantized assignment, whose pass is not counted."""
        self._fp32, self._known = fp32, set[tuple[str, int]]()

    def of(self, candidate: Candidate) -> int:
        """The sample-forwards that the candidate added: none for what was already known."""
        added = 0
        for result in candidate.results:
            found, signature = result.measurement or result.failure, result.executed.signature
            if found is not None and signature != self._fp32 and (signature, found.samples) not in self._known:
                self._known.add((signature, found.samples))
                added += found.samples
        return added


class Budget:
    """A progress function that ends a run by raising BudgetSpent. It counts, so it changes."""

    def __init__(self, forwards: int, fp32: str, before: History) -> None:
        """fp32: as Forwards takes it. before: what an earlier start of the run left."""
        self._counter, self._is_sensed = Forwards(fp32), before.sensitivity_forwards > 0
        searched = sum(self._counter.of(candidate) for candidate in before.candidates)
        self._left = forwards - before.sensitivity_forwards - searched

    def __call__(self, event: Event) -> None:
        if isinstance(event, SensitivityMeasured) and not self._is_sensed:
            self._left -= event.sample_forwards
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
    spent = (history.sensitivity_forwards + np.cumsum(added)) / samples
    front, volumes, volume = np.empty((0, 3)), [], 0.0
    for candidate in history.candidates:
        result = candidate.on(target)
        if result.is_measured_in_full and result.is_feasible:
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
