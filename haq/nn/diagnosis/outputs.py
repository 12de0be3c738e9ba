"""What rounding does to a layer's output, on FP32's inputs and in the whole network, gathered batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.diagnose.evidence import OutputEvidence
from haq.nn.diagnosis.decibel import ChannelSums, channel_axis, decibel, power
from haq.nn.quantizers import cast
from haq.precision import Format
from haq.workload import LayerSpec

Floats = NDArray[np.float64]
LEAST_DEVIATION = 1e-3
"""Of a channel's mean: below it a channel counts as constant, since fp32 sums of squares cannot tell."""


@dataclass(eq=False)
class OutputSums:
    """Sums over one layer's outputs so far. It changes: it fills. format: what the result is kept in."""

    layer: LayerSpec
    format: Format
    exact: ChannelSums = field(default_factory=ChannelSums)
    joint: ChannelSums = field(default_factory=ChannelSums)
    error: ChannelSums = field(default_factory=ChannelSums)
    noise: float = 0.0
    weight_noise: float = 0.0
    operand_noise: float = 0.0
    joint_noise: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    overflows: float = 0.0
    underflows: float = 0.0
    numbers: int = 0
    not_finite: int = 0

    def alone(self, wrong: Tensor, operands_wrong: Tensor | None) -> None:
        """Count the error of the layer on FP32's inputs. operands_wrong: with the operands rounded and nothing else."""
        self.noise += power(wrong)
        if operands_wrong is not None:
            self.operand_noise += power(operands_wrong)
            self.weight_noise += power(wrong - operands_wrong)
        self.error.add(_finite(wrong), channel_axis(self.layer.kind, wrong.dim()))

    def fp32(self, y: Tensor) -> None:
        """Count what FP32 computes."""
        low, high = (float(end) for end in torch.aminmax(y))
        self.low, self.high, self.numbers = min(self.low, low), max(self.high, high), self.numbers + y.numel()
        self.exact.add(y, channel_axis(self.layer.kind, y.dim()))
        if self.format.name != "fp32":
            kept = cast(y, self.format)
            self.overflows += float(torch.isinf(kept).sum()) - float(torch.isinf(y).sum())
            self.underflows += float(((kept == 0) & (y != 0)).sum())

    def in_network(self, y: Tensor, exact: Tensor) -> None:
        """Count what the quantized network computes where FP32 has `exact`."""
        self.joint_noise += power(y - exact)
        if not math.isfinite(self.joint_noise):
            self.not_finite += int((~torch.isfinite(y)).sum())
        self.joint.add(_finite(y), channel_axis(self.layer.kind, y.dim()))

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high)) if self.numbers else 0.0

    def evidence(self) -> OutputEvidence:
        signal, deviation = self.exact.power, self.exact.deviation
        constant = deviation <= LEAST_DEVIATION * np.maximum(np.abs(self.exact.mean), 1e-30)
        divisor = np.where(constant, 1.0, deviation)
        return OutputEvidence(
            layer=self.layer.name,
            sqnr_db=decibel(signal, self.noise),
            joint_sqnr_db=decibel(signal, self.joint_noise),
            weight_sqnr_db=decibel(signal, self.weight_noise),
            operand_sqnr_db=decibel(signal, self.operand_noise),
            mean_error=_sized(self.error.mean, len(deviation)),
            error_deviation=_sized(self.error.deviation, len(deviation)),
            joint_gain=np.where(constant, 1.0, self.joint.deviation / divisor),
            joint_shift=np.where(constant, 0.0, (self.joint.mean - self.exact.mean) / divisor),
            largest=self.largest,
            overflow_share=self.overflows / max(self.numbers, 1),
            underflow_share=self.underflows / max(self.numbers, 1),
            not_finite=self.not_finite,
        )


def _finite(x: Tensor) -> Tensor:
    """The tensor with zeros where it is not finite, so that channels without harm keep their sums."""
    return x if bool(torch.isfinite(x.sum())) else x.nan_to_num(0.0, 0.0, 0.0)


def _sized(values: Floats, size: int) -> Floats:
    """Zeros where nothing was added: the layer is exact."""
    return values if len(values) == size else np.zeros(size)
