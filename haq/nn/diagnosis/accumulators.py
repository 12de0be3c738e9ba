"""What an integer accumulator that is too narrow does to a layer's sums."""

from __future__ import annotations

from haq.nn.tuned import Result, Tuned
from haq.precision import Precision
from haq.workload import LayerSpec


def saturated(layer: LayerSpec, precision: Precision, numbers: Tuned, accumulator: str) -> Result | None:
    """What the accumulator does to the layer's result; None where it changes nothing (a float layer, a wide sum)."""
    return None
