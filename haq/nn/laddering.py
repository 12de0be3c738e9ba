"""Measures what a recovery ladder needs of a config's network: each group's losses, and each step's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from torch import nn

from haq.accuracy import Scores
from haq.history import SEARCH
from haq.nn.exportable import Exportable, calibration_of, how_quantized
from haq.nn.prepare import Calibrating, calibration_sensitivity
from haq.nn.simulate import Simulator
from haq.nn.tuned import build_tuned, tensors_of, tuned_from
from haq.precision import Assignment, Precision
from haq.sensitivity import Sensitivity, quantized_part

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
        what = self._what
        assert what.task is not None
        of = Calibrating(what.task, what.model, what.workload, how_quantized(what.config))
        chosen = [piece for piece in pieces if quantized_part(piece)]
        return calibration_sensitivity(of, self._simulator.build, chosen, 0, lambda done, total: None)

    @cached_property
    def _simulator(self) -> Simulator:
        what = self._what
        return Simulator(what.model, what.workload, calibration_of(what), how_quantized(what.config).folder)

    def _scores(self, model: nn.Module) -> Scores | float:
        assert self._what.task is not None
        return self._what.task.scores(model, SEARCH)
