"""What one look at a quantized network shows: numbers per operand, weight, output and join, before any verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haq.precision import Assignment, Format, Precision
from haq.workload import Workload

Floats = NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class OperandEvidence:
    """What a layer reads, as FP32 computes it on the served sample, beside what its format holds.

    range: the least and largest number that a code, or the float format, stands for. seen, calibrated: of the served
    sample and of calibration data (None where no summary was kept). sqnr_db: signal over rounding error as deployed,
    infinite where nothing is lost; best_sqnr_db: of as many codes on the range with the least squared error, which is
    `best_range`; channel_sqnr_db: with the best range for each channel. channel_largest: (channels,) magnitudes.
    codes_used: share of the codes that some number takes. clipped_share: of numbers beyond the range by more than half
    a step; calibrated_clipped_share: the same of calibration data. overflow_share, underflow_share: of numbers that
    become infinite, or zero though they are not, in the format. edges, counts: (bins + 1,), (bins,) histogram.
    calibrated_beyond_share: of calibration data, zeros left out, beyond what is seen now; None without a summary.
    """

    layer: str
    index: int
    format: Format
    range: Range
    seen: Range
    calibrated: Range | None
    sqnr_db: float
    best_sqnr_db: float
    best_range: Range
    channel_sqnr_db: float
    channel_largest: Floats
    codes_used: float
    clipped_share: float
    calibrated_clipped_share: float | None
    overflow_share: float
    underflow_share: float
    not_finite: int
    edges: Floats = field(repr=False)
    counts: Floats = field(repr=False)
    calibrated_beyond_share: float | None = None


@dataclass(frozen=True, eq=False)
class WeightEvidence:
    """A layer's stored weight beside its FP32 one.

    sqnr_db: as stored; best_sqnr_db: of as many bits to nearest with the best scale per output channel;
    tensor_sqnr_db: with the best one scale for all. scales: (channels,) as stored, of groups the largest; empty for
    float formats. channel_largest: (channels,) magnitudes in FP32. lost_channels: those that are not zero in FP32 and
    have a scale of zero or below the smallest normal number of `scale_format`; dead_channels: zero in FP32.
    gain: (channels,) least-squares factor from FP32's weight to the one in use; gain_share: what these factors explain
    of the error's power.
    """

    layer: str
    format: Format
    sqnr_db: float
    best_sqnr_db: float
    tensor_sqnr_db: float
    scales: Floats
    channel_largest: Floats
    scale_format: Format
    lost_channels: tuple[int, ...]
    dead_channels: tuple[int, ...]
    gain: Floats = field(default_factory=lambda: np.ones(0))
    gain_share: float = 0.0


@dataclass(frozen=True, eq=False)
class OutputEvidence:
    """A layer's output: rounded operands and stored weight on FP32's inputs (alone), and in the whole network (joint).

    sqnr_db, joint_sqnr_db: of the two. mean_error, error_deviation: (channels,) of the error alone, over samples and
    places. weight_sqnr_db, operand_sqnr_db: alone, with only the weight, or only the operands, rounded. joint_gain:
    (channels,) deviation in the whole quantized network over FP32's; joint_shift: (channels,) difference of means over
    FP32's deviation. largest: magnitude in FP32. overflow_share, underflow_share: of FP32's numbers in the format that
    the result is kept in; not_finite: numbers of the quantized network that are no numbers. accumulator_bits: what the
    largest integer sum needs, its sign included; saturated_share: of sums that the target's accumulator cannot hold.
    """

    layer: str
    sqnr_db: float
    joint_sqnr_db: float
    weight_sqnr_db: float
    operand_sqnr_db: float
    mean_error: Floats
    error_deviation: Floats
    joint_gain: Floats
    joint_shift: Floats
    largest: float
    overflow_share: float
    underflow_share: float
    not_finite: int
    accumulator_bits: int | None = None
    saturated_share: float = 0.0


@dataclass(frozen=True)
class JoinEvidence:
    """An add or a concatenation whose inputs share one scale. node: its name in the workload.

    layer: the layer whose result is the smaller input; largest: input -> magnitude; bits_lost: log2 of how much coarser
    the shared step is than the smaller input's own.
    """

    node: str
    layer: str
    largest: Mapping[str, float]
    bits_lost: float


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """All of one layer; what does not apply is absent."""

    layer: str
    precision: Precision
    operands: tuple[OperandEvidence, ...] = ()
    weight: WeightEvidence | None = None
    output: OutputEvidence | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that detectors look at, but for the costs.

    executed: what each layer runs in. layers: by name, in the workload's order. samples: how many were looked at.
    forced_bits_lost: layer -> how many of 8 bits the op behind it lost, where a target forces it to integers.
    """

    workload: Workload
    executed: Assignment
    layers: Mapping[str, LayerEvidence]
    joins: tuple[JoinEvidence, ...]
    samples: int
    forced_bits_lost: Mapping[str, float] = field(default_factory=dict)
