"""Whether what a network is served still is what it was calibrated on: its operands' summaries, compared.

The test is a two-sample Kolmogorov-Smirnov test over inputs (`haq.activations` says why), corrected for the number of
comparisons. It asks that inputs are drawn independently: the frames of one video are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from haq.activations import STATISTICS, Ends, Summary
from haq.sketch import distance

SIGNIFICANCE = 0.05
CLIPPED_SHARE = 0.01
PEAK_TOLERANCE = 1 / 512
"""Of the calibrated range, half a step of eight bits: a peak that moves by less is none to a quantizer. Some peaks are
one number in every input (of a text's first token), and another order of sums must not look like another number."""
MEAN_TOLERANCE = PEAK_TOLERANCE / 64
"""Means of many numbers move by less, and this is still far above what another order of sums does to them."""
SMALLEST_DISTANCE = 0.5
"""What too few inputs cannot show: that half of all inputs have moved out of the calibrated distribution."""


@dataclass(frozen=True)
class Limits:
    """Beyond what an alarm is raised. significance: the chance of any false alarm among all operands; 0 is none at all.

    clipped_share: of one operand's numbers, beyond what calibration data had. disagreement: of answers against FP32.
    """

    significance: float = SIGNIFICANCE
    clipped_share: float = CLIPPED_SHARE
    disagreement: float | None = None


@dataclass(frozen=True)
class OperandDrift:
    """One operand, served against calibrated.

    distances: Kolmogorov-Smirnov, over inputs, of each of STATISTICS. p_value: of the more telling one, corrected for
    all comparisons (Holm). range_ratio: width of what was served over that of calibration, which grows with the number
    of inputs; peak_ratio: of the medians over inputs of the largest magnitude. Both absent where that was 0.
    """

    layer: str
    index: int
    inputs: int
    not_finite: int
    seen: Ends
    calibrated: Ends
    range_ratio: float | None
    peak_ratio: float | None
    clipped_share: float | None
    calibrated_clipped_share: float | None
    distances: tuple[float, float]
    p_value: float
    drifted: bool
    clips: bool

    @property
    def alarms(self) -> bool:
        return self.drifted or self.clips or self.not_finite > 0

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "layer": self.layer, "operand": self.index, "inputs": self.inputs, "not_finite": self.not_finite,
            "seen": self.seen, "calibrated": self.calibrated,
            "distance": dict(zip(STATISTICS, self.distances, strict=True)), "p_value": self.p_value,
            "drifted": self.drifted, "clips": self.clips,
        }  # fmt: skip
        optional = {
            "range_ratio": self.range_ratio, "peak_ratio": self.peak_ratio,
            "clipped_share": self.clipped_share, "calibrated_clipped_share": self.calibrated_clipped_share,
        }  # fmt: skip
        if not self.inputs - self.not_finite:
            known.pop("seen")
        return known | {key: value for key, value in optional.items() if value is not None}


@dataclass(frozen=True)
class DriftReport:
    """The verdict over all operands, in the network's order. inputs: how many were served.

    needed_inputs: fewer cannot show that half of all inputs have moved. unobserved: operands that were not seen.
    """

    operands: tuple[OperandDrift, ...]
    inputs: int
    needed_inputs: int
    limits: Limits
    unobserved: tuple[str, ...] = ()

    @property
    def can_judge(self) -> bool:
        """Whether enough inputs were seen; a verdict on fewer says only what did show."""
        return self.inputs >= self.needed_inputs

    @property
    def alarms(self) -> tuple[OperandDrift, ...]:
        return tuple(operand for operand in self.operands if operand.alarms)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that raise an alarm, the first in the network first."""
        return tuple(dict.fromkeys(operand.layer for operand in self.alarms))

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs, "needed_inputs": self.needed_inputs, "can_judge": self.can_judge,
            "significance": self.limits.significance, "max_clipped_share": self.limits.clipped_share,
            "drifted_layers": list(self.layers), "operands": [operand.to_json() for operand in self.operands],
            "unobserved": list(self.unobserved),
        }  # fmt: skip


def compare_summaries(
    calibrated: Mapping[str, Summary], served: Mapping[str, Summary], inputs: int, limits: Limits, *, is_fp32: bool
) -> DriftReport:
    """The verdict. Keys are `layer:index`; inputs: how many were served.

    is_fp32: the network is the FP32 one, whose means and peaks are compared after the shift that quantization causes on
    calibration data, and means with the tolerance of peaks (an approximation: quantization widens a distribution too).
    """
    keys = [key for key in calibrated if key in served and served[key].inputs]
    pairs = {key: _distances(calibrated[key], served[key], is_fp32=is_fp32) for key in keys}
    raw = [p for key in keys for p in pairs[key][1]]
    adjusted = np.array(holm(raw)).reshape(-1, len(STATISTICS))
    made = tuple(
        _operand(key, calibrated[key], served[key], pairs[key][0], float(adjusted[row].min()), limits)
        for row, key in enumerate(keys)
    )
    fewest = min((calibrated[key].means.count for key in calibrated), default=0)
    needed = inputs_needed(len(STATISTICS) * len(calibrated), fewest, limits.significance)
    return DriftReport(made, inputs, needed, limits, tuple(key for key in calibrated if key not in keys))


def significance_of(distance: float, first: int, second: int) -> float:
    """An upper bound on the chance of a distance as large between samples of one distribution, of these sizes.

    The Dvoretzky-Kiefer-Wolfowitz inequality for two samples, e exp(-2 d^2 nm / (n + m)); Wei and Dudley, Stat. Probab.
    Lett. 82 (2012): e serves n = m of any size and every n != m that they computed, 2 most of them.
    """
    if not first or not second:
        return 1.0
    return min(1.0, math.exp(1 - 2 * distance**2 * first * second / (first + second)))


def inputs_needed(tests: int, calibrated: int, significance: float) -> int:
    """How many served inputs it takes to see SMALLEST_DISTANCE in the strictest of the tests.

    Where calibration had too few inputs for any number of served ones, twice as many as it had.
    """
    if not tests or not significance:
        return 1
    effective = (1 + math.log(tests / significance)) / (2 * SMALLEST_DISTANCE**2)
    if calibrated <= effective:
        return max(1, 2 * calibrated)
    return math.ceil(effective * calibrated / (calibrated - effective))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scand. J. Statist. 6, 1979): those below a level are at most that
    often wrong, any of them, however they depend on each other."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = largest
    return corrected


def _distances(calibrated: Summary, served: Summary, *, is_fp32: bool) -> tuple[tuple[float, float], list[float]]:
    """The distances of mean and peak, and the chance of each; what the sketches may err by is taken off first."""
    shifts = calibrated.fp32_shift if is_fp32 and calibrated.fp32_shift is not None else (0.0, 0.0)
    found, chances = [], []
    width = calibrated.high - calibrated.low
    tolerances = (width * (PEAK_TOLERANCE if is_fp32 else MEAN_TOLERANCE), width * PEAK_TOLERANCE)
    pairs = ((calibrated.means, served.means), (calibrated.peaks, served.peaks))
    for (before, now), shift, tolerance in zip(pairs, shifts, tolerances, strict=True):
        found.append(distance(before, now, shift, tolerance))
        certain = max(0.0, found[-1] - before.error - now.error)
        chances.append(significance_of(certain, before.count, now.count))
    return (found[0], found[1]), chances


def _operand(
    key: str, calibrated: Summary, served: Summary, distances: tuple[float, float], p_value: float, limits: Limits
) -> OperandDrift:
    layer, _, index = key.rpartition(":")
    width = calibrated.high - calibrated.low
    peak = calibrated.peaks.quantile(0.5)
    has_quantizer = calibrated.covers is not None
    excess = served.clipped_share - calibrated.clipped_share
    return OperandDrift(
        layer, int(index), served.inputs, served.not_finite,
        seen=(served.low, served.high),
        calibrated=(calibrated.low, calibrated.high),
        range_ratio=(served.high - served.low) / width if width > 0 and served.numbers else None,
        peak_ratio=served.peaks.quantile(0.5) / peak if peak > 0 and served.numbers else None,
        clipped_share=served.clipped_share if has_quantizer else None,
        calibrated_clipped_share=calibrated.clipped_share if has_quantizer else None,
        distances=distances, p_value=p_value, drifted=p_value < limits.significance,
        clips=has_quantizer and excess > limits.clipped_share,
    )  # fmt: skip
