"""The failure modes: what detects each of them, one line a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from haq.diagnose import (
    accumulator_saturation,
    activation_outliers,
    biased_error,
    calibration_mismatch,
    channel_imbalance,
    degenerate_scale,
    error_accumulation,
    float_range,
    join_mismatch,
    no_speedup,
    not_executed,
    sensitive_operator,
)
from haq.diagnose.costs import CostEvidence
from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Suspicion

DETECTORS: Mapping[str, Callable[[Evidence], Iterator[Suspicion]]] = {
    activation_outliers.MODE: activation_outliers.detect,
    calibration_mismatch.MODE: calibration_mismatch.detect,
    channel_imbalance.MODE: channel_imbalance.detect,
    biased_error.MODE: biased_error.detect,
    degenerate_scale.MODE: degenerate_scale.detect,
    float_range.MODE: float_range.detect,
    accumulator_saturation.MODE: accumulator_saturation.detect,
    join_mismatch.MODE: join_mismatch.detect,
    sensitive_operator.MODE: sensitive_operator.detect,
    error_accumulation.MODE: error_accumulation.detect,
}
"""Modes that cost accuracy: each turns what a look shows into suspicions, which interventions prove or drop."""

COST_DETECTORS: Mapping[str, Callable[[CostEvidence], Iterator[Suspicion]]] = {
    not_executed.MODE: not_executed.detect,
    no_speedup.MODE: no_speedup.detect,
}
"""Modes that cost time or bytes and no accuracy: proved by the cost model, not by measuring."""

REPAIRS: Mapping[str, str] = {
    module.MODE: module.REPAIR
    for module in (
        activation_outliers, calibration_mismatch, channel_imbalance, biased_error, degenerate_scale, float_range,
        accumulator_saturation, join_mismatch, sensitive_operator, error_accumulation, not_executed, no_speedup,
    )
}  # fmt: skip
"""What to do about each mode, in a line."""
