"""The network under diagnosis: what is deployed of it, and what a target does to it beyond rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from haq.hardware.accumulators import accumulators_of
from haq.hardware.profile import HardwareProfile
from haq.nn.calibrate import Operand
from haq.nn.diagnosis.accumulators import accumulator_of
from haq.nn.exportable import Exportable, calibration_of
from haq.nn.observers import Histograms
from haq.nn.task import Inputs
from haq.nn.tuned import Result, Tuned, build_tuned
from haq.precision import FORMATS, Assignment, Format
from haq.workload import Workload


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What calibration data showed of the operands. histograms: one row for each of `operands`.

    batches: the data themselves, where they are at hand.
    """

    operands: tuple[Operand, ...]
    histograms: Histograms = field(repr=False)
    batches: tuple[Inputs, ...] = field(default=(), repr=False)

    @cached_property
    def rows(self) -> dict[Operand, int]:
        """Operand -> its row."""
        return {operand: row for row, operand in enumerate(self.operands)}


@dataclass(frozen=True, eq=False)
class Subject:
    """A quantized network as a device runs it. Interventions and injected faults give a new one; nothing is changed.

    model: FP32, eval mode, batch norm folded. numbers: all that is deployed of the layers. calibrated: absent where
    no summaries are at hand. scale_format: what weight scales are stored in. accumulators: layer -> `int32`, `int16`,
    `intN` or `int16-pairs`, what the target sums products in, where that is not wide enough for anything. join_steps:
    layer -> the step that its result is rounded to, since the compiler gives both inputs of a join one scale.
    forced_steps: layer -> the same, since the target forces the op behind it to integers.
    """

    model: nn.Module
    workload: Workload
    executed: Assignment
    numbers: Tuned
    calibrated: Calibrated | None = None
    scale_format: Format = FORMATS["fp32"]
    accumulators: Mapping[str, str] = field(default_factory=dict)
    join_steps: Mapping[str, float] = field(default_factory=dict)
    forced_steps: Mapping[str, float] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """A model that computes what the device computes; it shares tensors with others, so only read it."""
        return build_tuned(self.model, self.workload, self.executed, self.numbers, self.results())

    def results(self) -> dict[str, Result]:
        """Layer -> what happens to its result after the layer itself has rounded it."""
        found: dict[str, list[Result]] = {}
        specs = {layer.name: layer for layer in self.workload.layers}
        for layer, named in self.accumulators.items():
            precision = self.executed.precision(layer)
            found.setdefault(layer, []).append(accumulator_of(self.model, specs[layer], precision, self.numbers, named))
        for steps in (self.join_steps, self.forced_steps):
            for layer, step in steps.items():
                found.setdefault(layer, []).append(_to_steps(step))
        return {layer: _in_turn(functions) for layer, functions in found.items()}

    def with_(self, **changes: object) -> Subject:
        """A copy in which some fields differ."""
        return replace(self, **changes)  # type: ignore[arg-type]


def subject_of(what: Exportable, profile: HardwareProfile | None = None) -> Subject:
    """The network of a config as its search made it; calibrated again where its numbers were in a file.

    profile: of the target that sums its integers; absent, every sum fits.
    """
    narrow = {} if profile is None else accumulators_of(profile, what.workload, what.executed)
    return Subject(what.model, what.workload, what.executed, what.numbers, _calibrated(what), accumulators=narrow)


def _calibrated(what: Exportable) -> Calibrated | None:
    if what.calibration is None and (what.task is None or not what.task.calibration()):
        return None
    ranges = calibration_of(what)
    return Calibrated(ranges.operands, ranges.histograms, ranges.batches)


def _to_steps(step: float) -> Result:
    return lambda y, _: (y / step).round_().mul_(step)


def _in_turn(functions: list[Result]) -> Result:
    def all_of(y: Tensor, x: Tensor) -> Tensor:
        for function in functions:
            y = function(y, x)
        return y

    return all_of
