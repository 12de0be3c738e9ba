"""Estimates the time to the end of a search from how long its measurements took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QUANTIZED = 1.25
"""A quantized candidate takes up to so many times the processor time of FP32 (experiments/accuracy, speed.csv)."""


@dataclass(frozen=True)
class Left:
    """What is still to be measured. per_candidate: measurements that one candidate needs, before any was made."""

    candidates: int
    validations: int
    per_candidate: float


def left_s(left: Left, fp32_s: float, durations_s: Mapping[str, Sequence[float]]) -> float:
    """Estimated seconds.

    fp32_s: of measuring FP32 on the search split. durations_s: kind of record -> seconds of each; a candidate that
    needed no measurement has 0. Medians, since some take much longer for what is done only once: calibration, the
    first quantization of a layer. Sensitivities are no measure of candidates and do not count.
    """
    measured = [seconds for seconds in durations_s.get("candidate", ()) if seconds > 0]
    validated = durations_s.get("validation", ())
    each = statistics.median(measured) if measured else QUANTIZED * fp32_s * left.per_candidate
    held_out = statistics.median(validated) if validated else QUANTIZED * fp32_s
    return left.candidates * each + left.validations * held_out
