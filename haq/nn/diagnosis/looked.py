"""What planting a fault must know of a subject's calibration data: ranges, spread and sums of what layers give."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.errors import InputError
from haq.nn.calibrate import Operand, observed
from haq.nn.diagnosis.decibel import channel_axis
from haq.nn.diagnosis.requantize import quantizer_over
from haq.nn.diagnosis.subject import Calibrated, Subject
from haq.nn.instrument import Onlooker, instrument_ops
from haq.nn.observers import DEFAULT_OBSERVER, OBSERVERS, Histograms
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, largest_code
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, first_samples, forward
from haq.nn.tuned import bias_key, build_tuned
from haq.precision import Format
from haq.workload import LayerSpec

Floats = NDArray[np.float64]
SAMPLES = 32
"""Calibration samples that ranges, spreads and sums of results are taken from."""


@dataclass(frozen=True, eq=False)
class Given:
    """A layer's FP32 result on calibration data. deviation: (channels,) over samples and places."""

    low: float
    high: float
    deviation: Tensor


def batches_of(subject: Subject, where: str) -> tuple[Inputs, ...]:
    """The calibration data; raises InputError where the subject has none."""
    if subject.calibrated is None or not subject.calibrated.batches:
        raise InputError(
            "this fault is planted by what calibration data show", where=where, got="a subject without such data",
            expected="Subject.calibrated with its batches", way_out="open the config with its data",
        )  # fmt: skip
    return subject.calibrated.batches


def given(subject: Subject, layer: str) -> Given:
    """What the layer gives in FP32 on the first calibration samples."""
    probe = _Results(layer)
    watched = shared_copy(subject.model)
    instrument_ops(watched, subject.workload, probe, {layer})
    with torch.inference_mode():
        forward(watched, first_samples(batches_of(subject, layer)[0], SAMPLES))
    y = by_channel(spec_of(subject, layer), probe.found).double()
    return Given(float(y.min()), float(y.max()), y.std(dim=1, correction=0).float().clone())


def bits_needed(subject: Subject, layer: str) -> int:
    """Bits of a signed accumulator that holds every sum of products that calibration samples cause, sign included.

    The sums are of (code - zero-point) x weight code, in the whole quantized network, as its next op leaves them: of a
    layer before a ReLU in place only the positive ones. `haq.nn.diagnosis.sums.needs` counts both signs.
    """
    results: list[Tensor] = []

    def keep(y: Tensor, _: Tensor) -> Tensor:
        results.append(y)
        return y

    built = build_tuned(subject.model, subject.workload, subject.executed, subject.numbers, {layer: keep})
    with torch.inference_mode():
        forward(built, first_samples(batches_of(subject, layer)[0], SAMPLES))
    spec = spec_of(subject, layer)
    assert spec.weight is not None
    stored, quantizer = subject.numbers.weights[spec.weight.key], subject.numbers.quantizers[layer, 0]
    assert isinstance(stored, QuantizedWeight)
    y = by_channel(spec, torch.cat(results)).double()
    bias = bias_key(subject.model, spec)
    if bias is not None:
        y = y - subject.numbers.biases[bias].double()[:, None]
    alive = stored.scales > 0
    sums = y[alive] / (stored.scales[alive].double() * quantizer.scale)[:, None]
    return int(np.ceil(np.log2(float(sums.abs().max().round()) + 1))) + 1


def seen(subject: Subject, operand: Operand) -> tuple[float, float]:
    """The range that calibration saw of the operand, 0 included; the range in use where no summary was kept."""
    if subject.calibrated is not None and operand in subject.calibrated.rows:
        row, histograms = subject.calibrated.rows[operand], subject.calibrated.histograms
        return min(float(histograms.low[row]), 0.0), max(float(histograms.high[row]), 0.0)
    quantizer = subject.numbers.quantizers[operand]
    levels = largest_code(quantizer.format)
    return -quantizer.zero_point * quantizer.scale, (levels - quantizer.zero_point) * quantizer.scale


def calibrated_anew(subject: Subject, layers: Collection[str]) -> Subject:
    """The subject with the operands of these layers observed again, and the best range for those that are integers."""
    batches = batches_of(subject, ", ".join(layers))
    operands, _, histograms = observed(subject.model, subject.workload, batches, layers)
    quantizers = dict(subject.numbers.quantizers)
    for row, operand in enumerate(operands):
        if operand in quantizers:
            quantizers[operand] = best_quantizer(histograms, row, quantizers[operand].format)
    made = subject.with_(numbers=replace(subject.numbers, quantizers=quantizers))
    for row, operand in enumerate(operands):
        low, high, zeros = (float(ends[row]) for ends in (histograms.low, histograms.high, histograms.zeros))
        made = with_histogram(made, operand, low, high, histograms.counts[row], zeros)
    return made


def best_quantizer(histograms: Histograms, row: int, fmt: Format) -> ActivationQuantizer:
    """The quantizer of one row with the range that loses least."""
    part = slice(row, row + 1)
    one = Histograms(histograms.low[part], histograms.high[part], histograms.counts[part], histograms.zeros[part])
    low, high = OBSERVERS[DEFAULT_OBSERVER](one, largest_code(fmt))
    return quantizer_over((float(low[0]), float(high[0])), fmt)


def with_histogram(
    subject: Subject, operand: Operand, low: float, high: float, counts: Floats, zeros: float
) -> Subject:
    """The subject whose calibration showed this of the operand; the same subject where nothing was kept of it."""
    calibrated = subject.calibrated
    if calibrated is None or operand not in calibrated.rows:
        return subject
    row, old = calibrated.rows[operand], calibrated.histograms
    made = Histograms(
        _with(old.low, row, low),
        _with(old.high, row, high),
        _with(old.counts, row, counts),
        _with(old.zeros, row, zeros),
    )
    return subject.with_(calibrated=Calibrated(calibrated.operands, made, calibrated.batches))


def by_channel(layer: LayerSpec, y: Tensor) -> Tensor:
    """(channels, all else) of a layer's result: channels come first after the batch in convolutions, else last."""
    return y.movedim(channel_axis(layer.kind, y.dim()), 0).flatten(1)


def spec_of(subject: Subject, layer: str) -> LayerSpec:
    """The layer in the subject's workload, which must have it."""
    return next(spec for spec in subject.workload.layers if spec.name == layer)


def _with(values: Floats, row: int, new: Floats | float) -> Floats:
    changed = values.copy()
    changed[row] = new
    return changed


class _Results(Onlooker):
    """The probe that keeps one layer's result. It changes as the model runs."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self.found = torch.empty(0)

    def output(self, layer: str, y: Tensor) -> Tensor:
        if layer == self._layer:
            self.found = y.detach()  # of a product whose bias comes after it, the second result counts
        return y
