"""How many bits the integer sums of a network need, where its accumulators may be too narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.nn.diagnosis.accumulators import Accumulator, accumulator_of
from haq.nn.diagnosis.subject import Subject
from haq.nn.task import Inputs, forward
from haq.nn.tuned import build_tuned


@dataclass(frozen=True)
class Need:
    """bits: of a signed integer that holds the largest sum. share: of sums that the accumulator cuts off."""

    bits: int
    share: float


def needs(subject: Subject, batches: Sequence[Inputs]) -> dict[str, Need]:
    """Layer -> what its sums need, of the layers in `subject.accumulators`, on these inputs, with all sums exact."""
    counted = {}
    for layer in subject.workload.layers:
        if (named := subject.accumulators.get(layer.name)) is not None:
            precision = subject.executed.precision(layer.name)
            counted[layer.name] = _Counted(accumulator_of(subject.model, layer, precision, subject.numbers, named))
    if not counted:
        return {}
    model = build_tuned(subject.model, subject.workload, subject.executed, subject.numbers, counted)
    with torch.inference_mode():
        for inputs in batches:
            forward(model, inputs)
    return {name: Need(_bits(count.largest), count.cut / max(count.sums, 1)) for name, count in counted.items()}


class _Counted:
    """Counts a layer's sums as they pass. It changes as the model runs."""

    def __init__(self, accumulator: Accumulator) -> None:
        self._accumulator = accumulator
        self.largest, self.cut, self.sums = 0.0, 0, 0

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        self.largest = max(self.largest, float(self._accumulator.sums(y).abs().max()))
        self.cut += int(self._accumulator.cut_off(y, x).sum())
        self.sums += y.numel()
        return y


def _bits(largest: float) -> int:
    """Of a signed integer: 127 takes 8."""
    return int(largest).bit_length() + 1
