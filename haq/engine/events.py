"""What a search reports while it runs; a caller passes one function that receives these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from haq.accuracy import Failure, Measurement
from haq.additivity import Additivity
from haq.candidate import Candidate
from haq.front import Point
from haq.history import Summary
from haq.quality import ACCURACY, MainMetric


@dataclass(frozen=True)
class Started:
    """The search is about to run. found: candidates that an earlier run left.

    groups, layers: free groups and the layers in them. space_size: assignments; effective_size: those that differ in
    what some target executes. kept: target -> share of `drawn` assignments that keep its limits on cost, where it has
    any and can price so many.
    """

    found: int
    trials: int
    groups: int
    layers: int
    space_size: int
    effective_size: int
    targets: tuple[str, ...]
    kept: Mapping[str, float]
    drawn: int


@dataclass(frozen=True)
class BaselineMeasured:
    """FP32 is measured (or known from before). estimate_s: about the time to the end. metric: what was measured."""

    measurements: Mapping[str, Measurement]
    estimate_s: float
    metric: MainMetric = ACCURACY


@dataclass(frozen=True)
class SensitivityProgress:
    """So many of the sensitivities are measured."""

    done: int
    total: int


@dataclass(frozen=True)
class SensitivityMeasured:
    """All of them are, or were before. sample_forwards: what they cost, in whole passes of one sample."""

    pieces: int
    samples: int
    sample_forwards: float
    additivity: Additivity


@dataclass(frozen=True)
class CandidateDone:
    """A candidate is in the history. left_s: estimated time to the end, the front's validation included.

    best: target -> smallest feasible point, within 1 point of FP32 where the user set no largest drop.
    """

    candidate: Candidate
    done: int
    trials: int
    left_s: float
    best: Mapping[str, Point]


@dataclass(frozen=True)
class Validated:
    """A front member is measured on the validation split; failure: why that gave no result, if it did not."""

    done: int
    total: int
    failure: Failure | None = None


@dataclass(frozen=True)
class Notice:
    """Something the user should know that does not stop the search."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is over. reason: `trials`, `timeout`, `converged`, `space exhausted` or `stalled` (nothing new).

    repeats: proposals of the sampler, since the command was started, that would have been executed like an earlier
    candidate on every target and were replaced.
    """

    reason: str
    summary: Summary
    repeats: int


Event = (
    Started
    | BaselineMeasured
    | SensitivityProgress
    | SensitivityMeasured
    | CandidateDone
    | Validated
    | Notice
    | Finished
)
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Report nothing."""
