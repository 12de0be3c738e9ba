"""Runs some layers of a network under diagnosis in other precisions: what the change is to its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from haq.nn.calibrate import Calibration, calibrate
from haq.nn.diagnosis.accumulators import sums_integers
from haq.nn.diagnosis.subject import Subject
from haq.nn.exportable import numbers_of
from haq.nn.prepare import Quantization
from haq.nn.simulate import Simulator
from haq.nn.task import Inputs
from haq.nn.tuned import Tuned, bias_key, operands, part
from haq.precision import FP32, Assignment, Precision

T = TypeVar("T")


class Raiser:
    """Changes layers' precisions. It changes as it is used: it calibrates when it first needs integer numbers.

    batches: calibration data; how: as the network was quantized, its structure as it is now. ranges: what calibration
    saw of this very model, where that is known already.
    """

    def __init__(
        self, subject: Subject, batches: tuple[Inputs, ...], how: Quantization, ranges: Calibration | None = None
    ) -> None:
        self._origin, self._batches, self._ranges = subject, batches, ranges
        self._how = replace(how, stack=how.stack.without_structure())

    @cached_property
    def _simulator(self) -> Simulator:
        model, workload, how = self._origin.model, self._origin.workload, self._how
        ranges = self._ranges
        if ranges is None:
            ranges = calibrate(model, workload, self._batches, observer=how.observer, stack=how.stack)
        return Simulator(model, workload, ranges, how.folder)

    def __call__(self, subject: Subject, raised: Mapping[str, Precision]) -> Subject:
        """The subject with these layers in these precisions.

        A weight that becomes a float one is the network's own, with its own bias; one that stays in its format stays
        as it is, with whatever is wrong with it, and so does an operand. Integer formats that are new are quantized as
        the search does it. What the target did to an integer result (a shared scale, a narrow accumulator) ends where
        the layer no longer computes in integers.
        """
        if not raised:
            return subject
        executed = Assignment(tuple((name, raised.get(name, subject.executed[name])) for name in subject.executed))
        weights, biases = dict(subject.numbers.weights), dict(subject.numbers.biases)
        quantizers = dict(subject.numbers.quantizers)
        fresh = self._fresh(subject, executed, raised)
        for layer in subject.workload.layers:
            if layer.name not in raised:
                continue
            before, after = subject.executed.precision(layer.name), raised[layer.name]
            if layer.weight is not None and before.weight != after.weight:
                key, bias = layer.weight.key, bias_key(subject.model, layer)
                if after.weight.is_integer:
                    weights[key] = fresh.weights[key]
                else:
                    weights[key] = part(subject.model, key)
                if bias is not None:
                    biases[bias] = fresh.biases[bias] if after.weight.is_integer else part(subject.model, bias)
            if before.activation != after.activation:
                for operand in operands(layer, before):
                    quantizers.pop(operand, None)
                for operand in operands(layer, after):
                    quantizers[operand] = fresh.quantizers[operand]
        numbers = replace(subject.numbers, weights=weights, biases=biases, quantizers=quantizers)
        floats = {name for name, precision in raised.items() if not precision.activation.is_integer}
        no_sums = {name for name, precision in raised.items() if not sums_integers(precision)}
        return subject.with_(
            executed=executed, numbers=numbers,
            accumulators=_without(subject.accumulators, no_sums), join_steps=_without(subject.join_steps, floats),
            forced_steps=_without(subject.forced_steps, floats),
        )  # fmt: skip

    def _fresh(self, subject: Subject, executed: Assignment, raised: Mapping[str, Precision]) -> Tuned:
        """The numbers of new integer formats, quantized anew."""
        new = {
            name: precision
            for name, precision in raised.items()
            if (precision.weight.is_integer and precision.weight != subject.executed.precision(name).weight)
            or (precision.activation.is_integer and precision.activation != subject.executed.precision(name).activation)
        }
        if not new:
            return replace(subject.numbers, weights={}, biases={}, quantizers={})
        whole = Assignment(tuple((name, new.get(name, FP32)) for name in executed))
        return numbers_of(self._simulator, whole)


def _without(mapping: Mapping[str, T], names: set[str]) -> Mapping[str, T]:
    return {name: value for name, value in mapping.items() if name not in names}
