"""The failure modes: what detects each of them, one line a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from haq.diagnose import (
    activation_outliers,
    biased_error,
    calibration_mismatch,
    channel_imbalance,
    degenerate_scale,
    no_speedup,
    not_executed,
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
}
"""Modes that cost accuracy: each turns what a look shows into suspicions, which interventions prove or drop."""

COST_DETECTORS: Mapping[str, Callable[[CostEvidence], Iterator[Suspicion]]] = {
    not_executed.MODE: not_executed.detect,
    no_speedup.MODE: no_speedup.detect,
}
"""Modes that cost time or bytes and no accuracy: proved by the cost model, not by measuring."""
