"""Run calibration data through the FP32 model once for ranges and once for histograms, per operand of every layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from haq.errors import InputError, lookup
from haq.nn.instrument import Onlooker, instrument_ops
from haq.nn.observers import BINS, DEFAULT_OBSERVER, OBSERVERS, Histograms
from haq.nn.quantizers import ActivationQuantizer, affine_parameters, largest_code
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, batch_size, forward, hash_inputs
from haq.precision import FORMATS, Format
from haq.techniques import DEFAULT, Stack
from haq.workload import Workload

Operand = tuple[str, int]
"""A layer's name and which of its operands: 0, and for attention products 0 and 1."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What activation quantizers are made from.

    observer: a name in OBSERVERS. stack: how weights are quantized. samples, data_hash, batches: what it was made on.
    operands: one per row of `histograms`. functional: the layers whose op runs outside the module that owns the weight.
    """

    observer: str
    stack: Stack
    samples: int
    data_hash: str
    batches: tuple[Inputs, ...] = field(repr=False)
    operands: tuple[Operand, ...]
    functional: frozenset[str]
    histograms: Histograms = field(repr=False)

    @cached_property
    def quantizers(self) -> dict[tuple[Operand, Format], ActivationQuantizer]:
        """The quantizer of every operand in every integer format, all layers at once."""
        found = {}
        for fmt in (f for f in FORMATS.values() if f.is_integer and f.plain is f):
            ranges = OBSERVERS[self.observer](self.histograms, largest_code(fmt))
            scales, zero_points = affine_parameters(*ranges, largest_code(fmt))
            for operand, scale, zero_point in zip(self.operands, scales, zero_points, strict=True):
                found[operand, fmt] = ActivationQuantizer(fmt, float(scale), int(zero_point))
        return found

    def quantizer(self, layer: str, operand: int, fmt: Format) -> ActivationQuantizer:
        """The static quantizer of a layer's operand in an integer format; raises InputError for an unseen layer."""
        key = (layer, operand), fmt
        if key not in self.quantizers:
            raise InputError(
                "the layer was not calibrated",
                where=layer,
                got=f"operand {operand} in {fmt}",
                expected="a seen operand",
            )
        return self.quantizers[key]


def calibrate(
    model: nn.Module,
    workload: Workload,
    batches: Iterable[Inputs],
    *,
    observer: str = DEFAULT_OBSERVER,
    stack: Stack = DEFAULT,
) -> Calibration:
    """Observe every layer's operands over the batches; `model` is folded, in eval mode, and stays untouched.

    Raises InputError on an unknown observer, on no data, on data that is not finite or does not fit the model, on
    operands that become infinite or NaN, and on layers that the data never reaches.
    """
    lookup(OBSERVERS, observer, "observer")
    data = tuple(batches)
    check_data(data, workload)
    operands, functional, histograms = observed(model, workload, data, workload.layer_names)
    samples = sum(batch_size(inputs) for inputs in data)
    return Calibration(observer, stack, samples, hash_inputs(data), data, operands, functional, histograms)


def observed(
    model: nn.Module, workload: Workload, data: Sequence[Inputs], layers: Collection[str]
) -> tuple[tuple[Operand, ...], frozenset[str], Histograms]:
    """What the named layers read: their operands, which of the layers are functional, and a histogram per operand.

    Raises InputError on data that does not fit the model, on operands that become infinite or NaN, and on layers that
    the data never reaches.
    """
    ranges = _Ranges()
    _run(model, workload, data, ranges, layers)
    _check_reached(workload, layers, ranges.reached)
    counts = _Counts(ranges)
    _run(model, workload, data, counts, layers)
    return tuple(ranges.low), frozenset(ranges.functional), counts.result()


class _Ranges:
    """First pass: the least and largest number of every operand so far."""

    def __init__(self) -> None:
        self.low: dict[Operand, float] = {}
        self.high: dict[Operand, float] = {}
        self.reached: set[str] = set()
        self.functional: set[str] = set()

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        low, high = (float(end) for end in torch.aminmax(x.detach()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                "an activation is not finite in FP32",
                where=f"calibration, layer {layer}, operand {index}",
                got=low if not np.isfinite(low) else high,
                expected="finite numbers",
                way_out="check the weights; mask attention with a finite minimum instead of -inf",
            )
        key = (layer, index)
        self.low[key] = min(low, self.low.get(key, low))
        self.high[key] = max(high, self.high.get(key, high))
        return x

    def output(self, layer: str, y: Tensor) -> Tensor:
        self.reached.add(layer)
        return y

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        if channel_axis is not None:
            self.functional.add(layer)
        return x


class _Counts(Onlooker):
    """Second pass: histograms between the first pass's ends, zeros counted apart."""

    def __init__(self, ranges: _Ranges) -> None:
        self._low, self._high = np.array(list(ranges.low.values())), np.array(list(ranges.high.values()))
        self._row = {key: row for row, key in enumerate(ranges.low)}
        self._counts = np.zeros((len(self._row), BINS))
        self._zeros = np.zeros(len(self._row))

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        row = self._row[layer, index]
        low, high = float(self._low[row]), float(self._high[row])
        flat = x.detach().flatten()
        zeros = flat.numel() - int(torch.count_nonzero(flat))
        if low == high:
            self._counts[row, 0] += flat.numel() - zeros
        else:
            # histc counts in fp32, which is exact up to 2^24
            for part in torch.split(flat, 2**23):
                self._counts[row] += torch.histc(part, BINS, low, high).cpu().numpy()
            # The bin that zeros fall into, by torch.histc's own arithmetic
            zero_bin = torch.histc(flat.new_zeros(1), BINS, low, high).argmax() if zeros else 0
            self._counts[row, int(zero_bin)] -= zeros
        self._zeros[row] += zeros
        return x

    def result(self) -> Histograms:
        return Histograms(self._low, self._high, self._counts, self._zeros)


def _run(
    model: nn.Module, workload: Workload, data: Sequence[Inputs], probe: _Ranges | _Counts, layers: Collection[str]
) -> None:
    watched = shared_copy(model)
    instrument_ops(watched, workload, probe, layers)
    with torch.inference_mode():
        for number, inputs in enumerate(data):
            try:
                forward(watched, inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise InputError(
                    f"the model does not take the calibration data: {error}",
                    where=f"calibration batch {number}",
                    got=", ".join(f"{name} {tuple(t.shape)}" for name, t in _named(inputs)),
                    expected=", ".join(f"{name} (batch, {str(shape)[1:]}" for name, shape in workload.inputs),
                ) from error


def check_data(data: Sequence[Inputs], workload: Workload) -> None:
    """Raises InputError on no samples and on data that is not finite."""
    if sum(batch_size(inputs) for inputs in data if len(inputs)) == 0:
        raise InputError(
            "no calibration data",
            where=workload.name,
            got=f"{len(data)} batches without samples",
            expected="at least one sample, better 128 or more",
            way_out="pass batches of inputs as calibration=",
        )
    for number, inputs in enumerate(data):
        for name, tensor in _named(inputs):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    "the calibration data is not finite",
                    where=f"calibration batch {number}, input {name}",
                    got=float(tensor[~torch.isfinite(tensor)][0]),
                    expected="finite numbers",
                )


def _check_reached(workload: Workload, layers: Collection[str], reached: set[str]) -> None:
    missing = [name for name in layers if name not in reached]
    if missing:
        raise InputError(
            "the calibration data never reaches a layer",
            where=workload.name,
            got=", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
            expected=f"all {len(layers)} layers to run",
            way_out="calibrate with inputs that take every branch",
        )


def _named(inputs: Inputs) -> list[tuple[str, Tensor]]:
    return list(inputs.items()) if isinstance(inputs, dict) else [(str(i), t) for i, t in enumerate(inputs)]
