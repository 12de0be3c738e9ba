"""Whether the range of a static operand fits what is served, and if not, whether it fits what was calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from haq.diagnose.evidence import Evidence, LayerEvidence, OperandEvidence

DB_PER_BIT = 6.0206
"""20 log10(2): halving the step quarters the noise (Bennett 1948)."""
HALF_BIT_DB = DB_PER_BIT / 2
"""The noise is twice as much as it had to be."""
OUTLIERS_SHARE = 0.001
"""Outliers in the features of large models are about 0.1 % of the numbers (Dettmers et al. 2022, "LLM.int8()",
section 1); more than that is how the data are."""


@dataclass(frozen=True, eq=False)
class BadRange:
    """An operand that loses at least half a bit to its range. is_wide: wider than best, else it clips.

    is_stretched: at most 0.1 % of the calibration data lie beyond what is served, so that it was made wide by outliers
    or a bad choice, and not by other data.
    """

    layer: LayerEvidence
    operand: OperandEvidence
    gain_db: float
    is_wide: bool
    is_stretched: bool

    @property
    def severity(self) -> float:
        """Noise over signal that the best range takes away."""
        return noise(self.operand.sqnr_db) - noise(self.operand.best_sqnr_db)


def bad_ranges(evidence: Evidence) -> Iterator[BadRange]:
    """Every static integer operand whose best range gains half a bit; those calibrated on zeros alone are left out."""
    for layer in evidence.layers.values():
        for operand in layer.operands:
            gain = gain_db(operand)
            if gain >= HALF_BIT_DB and not calibrated_on_zeros(operand):
                is_wide = width(operand.range) > width(operand.best_range)
                beyond = operand.calibrated_beyond_share
                is_stretched = is_wide and (beyond is None or beyond <= OUTLIERS_SHARE)
                yield BadRange(layer, operand, gain, is_wide, is_stretched)


def gain_db(operand: OperandEvidence) -> float:
    """What the best range gains; 0 of formats without a static range."""
    if not operand.format.is_integer or operand.format.per_token or operand.sqnr_db == operand.best_sqnr_db:
        return 0.0
    return operand.best_sqnr_db - operand.sqnr_db


def calibrated_on_zeros(operand: OperandEvidence) -> bool:
    """Whether calibration saw nothing but zeros, and data do not."""
    return operand.calibrated == (0.0, 0.0) and operand.seen != (0.0, 0.0) and operand.format.is_integer


def width(of: tuple[float, float]) -> float:
    return of[1] - of[0]


def even_spread_db(bits: int) -> float:
    """Signal over the rounding error of numbers that are spread evenly over so many bits: 6.02 b + 1.76 (Bennett
    1948)."""
    return bits * DB_PER_BIT + 1.76


def noise(sqnr_db: float) -> float:
    """Noise power over signal power: 1.0 is as much noise as signal."""
    return float(10 ** (-sqnr_db / 10))


def words(of: tuple[float, float]) -> str:
    """A range for a sentence."""
    return f"{of[0]:.3g} ... {of[1]:.3g}"
