"""What was measured on a written artifact and read back from it: all that the gate judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Scores
from haq.precision import Assignment, Precision
from haq.quality import MainMetric

SAME_SCALE = 1e-3
"""Scales that differ by less than this share are the same number, written in another format or order."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The artifact and the simulation on the same samples, in the same order.

    artifact, simulated: scores of the metric, (n,) or one number each. agreement: share of samples with the same
    largest output; largest_error, largest_output: magnitudes over all outputs; absent where outputs are not seen.
    """

    split: str
    metric: MainMetric
    artifact: Scores | float
    simulated: Scores | float
    agreement: float | None = None
    largest_error: float | None = None
    largest_output: float | None = None


@dataclass(frozen=True)
class Latency:
    """times_ms: of the repeats, per batch. modelled_ms: for `target`, absent when the config has none.

    how: the machine and the mode that it was measured in.
    """

    times_ms: tuple[float, ...]
    batch: int
    target: str
    how: str
    modelled_ms: float | None = None

    @property
    def median_ms(self) -> float:
        return float(np.median(self.times_ms))


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that was read off an artifact. Precisions are by layer.

    realised: as stored in the file, None where the file does not tell. arithmetic: what the runtime multiplies in where
    that is known. scales: (layer, which) -> (the config's, the artifact's). other_codes: layer -> (channels whose codes
    are not the config's, channels).
    """

    file_bytes: int
    initializer_bytes: int
    promised_bytes: float | None
    answers: Answers
    asked: Assignment
    realised: Mapping[str, Precision | None]
    latency: Latency | None = None
    arithmetic: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)
    other_codes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
