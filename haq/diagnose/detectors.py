"""The failure modes: what detects each of them, one line a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from haq.diagnose import no_speedup, not_executed
from haq.diagnose.costs import CostEvidence
from haq.diagnose.finding import Suspicion

COST_DETECTORS: Mapping[str, Callable[[CostEvidence], Iterator[Suspicion]]] = {
    not_executed.MODE: not_executed.detect,
    no_speedup.MODE: no_speedup.detect,
}
"""Modes that cost time or bytes and no accuracy: proved by the cost model, not by measuring."""
