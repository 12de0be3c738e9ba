"""Measures what a recovery ladder needs of a config's network: each group's losses, and each step's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from torch import nn

from haq.accuracy import Scores
from haq.history import SEARCH
from haq.nn.calibrate import calibrate
from haq.nn.effects import Recipe, kept_effects
from haq.nn.exportable import Exportable, how_quantized
from haq.nn.sensitivity import SAMPLES, Sample, measure_sensitivity
from haq.nn.simulate import Simulator
from haq.nn.subset import spread_rows
from haq.nn.task import HasCalibrationLabels, HasOutputs
from haq.nn.tuned import build_tuned, tensors_of, tuned_from
from haq.precision import Assignment, Precision
from haq.sensitivity import Kind, Sensitivity, quantized_part

Raised = Mapping[str, Precision]


class Heights:
    """A config's network at the steps of its ladder. It changes as it is used: it calibrates once, when it must.

    own_numbers: the numbers are in a file, so that raised layers take the model's own and no others change; else they
    are made anew, as the search does it.
    """

    def __init__(self, what: Exportable, *, own_numbers: bool) -> None:
        self._what, self._own_numbers = what, own_numbers

    def fp32(self) -> Scores | float:
        return self._scores(self._what.model)

    def scores(self, raised: Raised) -> Scores | float:
        """Of the network with these layers raised, on the search split."""
        what = self._what
        executed = Assignment.of({**what.executed, **raised})
        if not self._own_numbers:
            return self._scores(self._simulator.build(executed))
        # The model is smoothed already.
        tensors = tensors_of(replace(what.numbers, smoothing={}))
        numbers = tuned_from(tensors, executed, what.workload, what.numbers.functional, what.model)
        return self._scores(build_tuned(what.model, what.workload, executed, numbers))

    def sensitivity(self, pieces: tuple[Assignment, ...]) -> Sensitivity:
        """What the pieces cost with all else in FP32, on calibration data, as the search measures it."""
        what, task = self._what, self._what.task
        assert task is not None
        batches = tuple(task.calibration())
        labels = task.calibration_labels if isinstance(task, HasCalibrationLabels) else ()
        sample = Sample(*spread_rows(batches, labels, SAMPLES, SAMPLES))
        measure: Kind = "kl" if isinstance(task, HasOutputs) else "relative error"
        how = how_quantized(what.config)
        recipe = Recipe(what.model, batches, how.stack, how.observer, sample.batches, sample.labels, measure)
        chosen = [piece for piece in pieces if quantized_part(piece)]
        return measure_sensitivity(
            self._simulator.build, what.workload, sample, chosen, 0,
            measure=measure, kept=kept_effects(recipe), progress=lambda done, total: None,
        )  # fmt: skip

    @cached_property
    def _simulator(self) -> Simulator:
        what, how = self._what, how_quantized(self._what.config)
        ranges = what.calibration
        if ranges is None:
            assert what.task is not None
            batches = tuple(what.task.calibration())
            ranges = calibrate(what.model, what.workload, batches, observer=how.observer, stack=how.stack)
        return Simulator(what.model, what.workload, ranges, how.folder)

    def _scores(self, model: nn.Module) -> Scores | float:
        assert self._what.task is not None
        return self._what.task.scores(model, SEARCH)
