"""Accuracy with its uncertainty: a measurement of one set of executed formats against FP32 on the same samples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError
from haq.quality import AGREEMENT, KL, WORST_CLASS, Direction, QualityReport
from haq.racing import Look, drop_bounds

Scores = NDArray[np.float64]
"""(n,) one score per sample in a fixed order, in [0, 1] for accuracies (1.0: right)."""

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Reading:
    """What a measure read of one model on one split. scores: of the metric that drives the search.

    metric: its name, where the user's function gave it one. is_continuous: zeros and ones among the scores are no
    counts of right and wrong, as in a KL divergence that is 0 throughout. look: where measuring was stopped early, what
    was measured by then; the scores are its scores.
    """

    scores: Scores | float
    report: QualityReport | None = None
    metric: str | None = None
    is_continuous: bool = False
    look: Look | None = None


@dataclass(frozen=True)
class Failure:
    """A measurement without a result, such as a loss over infinite logits. samples: how many were spent on it."""

    reason: str
    samples: int


@dataclass(frozen=True)
class Measurement:
    """Measured accuracy of one model on one split.

    accuracy: a fraction, or the value of whatever other metric drives the search; metric: its name, where the user's
    function gave one. drop_points: 100 x (FP32 - this), or 100 x (this - FP32) where it is minimized, on the same
    samples. The intervals are absent when the user's function returns one number: unknown is not zero.

    of_samples: samples in the split, where measuring was stopped early. accuracy and drop then are estimates for the
    whole split, and the intervals are about the whole split, too; `quality` is estimated like them.
    """

    split: str
    samples: int
    accuracy: float
    drop_points: float
    accuracy_interval: Interval | None = None
    drop_interval: Interval | None = None
    metric: str | None = None
    quality: QualityReport | None = None
    of_samples: int | None = None

    @property
    def is_partial(self) -> bool:
        """Whether measuring was stopped before all samples of the split were measured."""
        return self.of_samples is not None

    def figures(self) -> dict[str, float]:
        """What limits on a measurement are judged on; what is unknown is absent."""
        known: dict[str, float | None] = {"drop_points": self.drop_points}
        if self.quality is not None:
            agreement = self.quality.value(AGREEMENT)
            known |= {
                "class_drop_points": self.quality.value(WORST_CLASS),
                "kl_nats": self.quality.value(KL),
                # A limit is an upper one, so agreement is limited by what it lacks.
                "disagreement": None if agreement is None else 1 - agreement,
            }
        return {name: value for name, value in known.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        raw = {key: value for key, value in asdict(self).items() if value is not None and key != "quality"}
        return raw if self.quality is None else {**raw, "quality": self.quality.to_json()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Measurement:
        known: dict[str, Any] = dict(raw)
        for key in ("accuracy_interval", "drop_interval"):
            if key in known:
                known[key] = Interval(**known[key])
        if "quality" in known:
            known["quality"] = QualityReport.from_json(known["quality"])
        return cls(**known)


def mean_interval(scores: Scores, *, is_continuous: bool = False) -> Interval:
    """Wilson's score interval of the mean of 0/1 scores (Wilson 1927), the normal interval of any other scores."""
    n, mean = len(scores), float(np.mean(scores))
    if is_continuous or not np.isin(scores, (0.0, 1.0)).all():
        half = Z95 * float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return Interval(mean - half, mean + half)
    shrink = 1 / (1 + Z95**2 / n)
    centre = shrink * (mean + Z95**2 / (2 * n))
    half = shrink * Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2))
    return Interval(centre - half, centre + half)


def paired_drop_interval(reference: Scores, scores: Scores, *, is_continuous: bool = False) -> Interval:
    """The interval, in points, of 100 x mean(reference - scores) over the same samples.

    0/1 scores: Wald on the discordant pairs with 1/2 added to each cell (Agresti and Min, Stat. Med. 24, 2005), which
    does not collapse to zero width when no sample changed; other scores: normal interval of the differences.
    """
    difference = reference - scores
    n = len(difference)
    if is_continuous or not np.isin(np.concatenate([reference, scores]), (0.0, 1.0)).all():
        half = Z95 * float(np.std(difference, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        mean = float(np.mean(difference))
        return Interval(100 * (mean - half), 100 * (mean + half))
    lost, gained, total = np.sum(difference > 0) + 0.5, np.sum(difference < 0) + 0.5, n + 2
    mean = (lost - gained) / total
    half = Z95 * math.sqrt((lost + gained) - (lost - gained) ** 2 / total) / total
    return Interval(100 * float(mean - half), 100 * float(mean + half))


def compare(
    reference: Scores | float,
    result: Scores | float,
    split: str,
    direction: Direction = "maximize",
    *,
    is_continuous: bool = False,
) -> Measurement:
    """The measurement of `result` against the FP32 `reference`; both per-sample arrays or both single numbers.

    direction: which way the metric is better; a drop is positive where the result is worse. is_continuous: as
    in Reading.

    Raises InputError on non-finite values, on no samples and on a shape that differs from the reference's.
    """
    for name, value in (("FP32 model", reference), ("candidate", result)):
        if np.size(value) == 0:
            raise InputError(
                "no samples to measure accuracy on", where=f"split {split!r}", got=0, expected="at least one sample"
            )
        flat = np.ravel(value)
        if not np.isfinite(flat).all():
            raise InputError(
                f"the {name}'s accuracy is not finite",
                where=f"split {split!r}",
                got=float(flat[~np.isfinite(flat)][0]),
                expected="finite scores",
                way_out="check the evaluate function and its data",
            )
    if isinstance(reference, np.ndarray) and isinstance(result, np.ndarray):
        if reference.shape != result.shape or reference.ndim != 1:
            raise InputError(
                "per-sample scores changed shape",
                where=f"split {split!r}",
                got=result.shape,
                expected=str(reference.shape),
            )
        better, worse = (reference, result) if direction == "maximize" else (result, reference)
        return Measurement(
            split,
            len(result),
            float(np.mean(result)),
            100 * (float(np.mean(better)) - float(np.mean(worse))),
            _known(mean_interval(result, is_continuous=is_continuous)),
            _known(paired_drop_interval(better, worse, is_continuous=is_continuous)),
        )
    if isinstance(reference, np.ndarray) or isinstance(result, np.ndarray):
        raise InputError(
            "evaluate returned an array once and a number once",
            where=f"split {split!r}",
            expected="always the same kind",
        )
    lost = float(reference) - float(result) if direction == "maximize" else float(result) - float(reference)
    return Measurement(split, 1, float(result), 100 * lost)


def estimated(reference: Scores, look: Look, split: str, direction: Direction = "maximize") -> Measurement:
    """The measurement that was stopped after a look. reference: FP32's scores of the whole split.

    The drop's interval is `drop_bounds`; the accuracy's is what it leaves of FP32's accuracy, which is known.
    """
    bounds = drop_bounds(reference, look, is_minimized=direction == "minimize")
    fp32, sign = float(np.mean(reference)), -1 if direction == "maximize" else 1
    ends = sorted((fp32 + sign * bounds.low / 100, fp32 + sign * bounds.high / 100))
    return Measurement(
        split,
        len(look.samples),
        fp32 + sign * bounds.estimate / 100,
        bounds.estimate,
        _known(Interval(*ends)),
        _known(Interval(bounds.low, bounds.high)),
        of_samples=look.of_samples,
    )


def judged(reference: Scores | float, reading: Reading, split: str, direction: Direction = "maximize") -> Measurement:
    """The measurement of a reading, of the whole split or stopped early; raises InputError as `compare` does."""
    if reading.look is not None:
        assert isinstance(reference, np.ndarray), "only per-sample scores can be stopped early"
        return replace(estimated(reference, reading.look, split, direction), metric=reading.metric)
    found = compare(reference, reading.scores, split, direction, is_continuous=reading.is_continuous)
    return replace(found, metric=reading.metric)


def _known(interval: Interval) -> Interval | None:
    """The interval, unless nothing is known about it, as of a single score that is neither 0 nor 1."""
    return interval if math.isfinite(interval.low) and math.isfinite(interval.high) else None
