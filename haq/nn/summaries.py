"""Summarizes what reaches each operand of a running network: the pass over calibration data, and the ear for it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.activations import Ends, Summary
from haq.nn.exportable import Exportable, how_quantized
from haq.nn.listening import Call, listening
from haq.nn.quantizers import largest_code
from haq.nn.subset import spread_rows
from haq.nn.task import Inputs, forward
from haq.nn.tuned import Tuned
from haq.techniques import STRUCTURE

INPUTS = 128
"""Calibration inputs that are summarized, spread evenly: as many as a sketch over inputs holds exactly."""
NUMBERS = 256
"""Numbers of one input that go into the sketch of an operand's numbers; all of them where it has no more."""
FP16_LARGEST = 65520.0
"""From here on a number rounds to infinity in fp16."""
GOLDEN = 0.6180339887498949


class Summarizer:
    """The ear that keeps a summary per `layer:index`. It changes while the model runs; threads may share it.

    covers: `layer:index` -> the ends beyond which a number is clipped; operands that it lacks have no quantizer.
    """

    def __init__(self, covers: Mapping[str, Ends]) -> None:
        self.summaries: dict[str, Summary] = {}
        self._covers, self._lock = covers, threading.Lock()

    def wants(self) -> bool:
        return True

    def hear(self, call: Call, layer: str, index: int, x: Tensor) -> None:
        """Add a batch of the operand, (inputs x anything, ...); one that cannot be told apart by input adds nothing."""
        inputs = _by_input(call, x)
        if inputs is None:
            return
        key = f"{layer}:{index}"
        seen = _Seen(inputs, self._covers.get(key))
        with self._lock:
            if key not in self.summaries:
                self.summaries[key] = Summary(self._covers.get(key))
            seen.add_to(self.summaries[key])

    def copied(self) -> dict[str, Summary]:
        """The summaries as they are now."""
        with self._lock:
            return {key: summary.copy() for key, summary in self.summaries.items()}

    def merge(self, others: Mapping[str, Summary]) -> None:
        """Add summaries of the same operands."""
        with self._lock:
            for key, other in others.items():
                if key in self.summaries:
                    self.summaries[key].merge(other)
                else:
                    self.summaries[key] = other.copy()


class _Seen:
    """One batch of one operand in figures, (inputs,) each, worked out before the lock is taken."""

    def __init__(self, inputs: Iterable[Tensor], covers: Ends | None) -> None:
        rows: list[NDArray[np.float64]] = []
        self.picked: list[NDArray[np.float32]] = []
        for part in inputs:  # (inputs, numbers), of one width
            low, high = torch.aminmax(part, dim=1)
            mean = part.mean(dim=1, dtype=torch.float32)
            clipped = torch.zeros_like(mean)
            if covers is not None and bool((low < covers[0]).any() | (high > covers[1]).any()):
                clipped = ((part < covers[0]) | (part > covers[1])).sum(dim=1).to(mean.dtype)
            width = torch.full_like(mean, part.shape[1])
            rows.append(torch.stack([low.float(), high.float(), mean, clipped, width]).double().cpu().numpy())
            self.picked.append(part[:, places(part.shape[1])].float().cpu().numpy())
        self.figures: NDArray[np.float64] = np.concatenate(rows, axis=1)

    def add_to(self, summary: Summary) -> None:
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(self.figures).all(axis=0))
        low, high, mean, clipped, width = self.figures[:, finite]
        summary.inputs += len(finite)
        summary.not_finite += int(len(finite) - finite.sum())
        if not len(low):
            return
        summary.numbers += int(width.sum())
        summary.total += float((mean * width).sum())
        summary.clipped += int(clipped.sum())
        summary.low, summary.high = min(summary.low, float(low.min())), max(summary.high, float(high.max()))
        summary.means.update(mean)
        summary.peaks.update(np.maximum(np.abs(low), np.abs(high)))
        start = 0
        for part in self.picked:
            kept = part[finite[start : start + len(part)]]
            start += len(part)
            summary.sketch.update(kept.ravel())


@cache
def places(width: int) -> NDArray[np.int64]:
    """Which of an input's numbers go into the sketch: at most NUMBERS, always the same ones.

    Multiples of the golden section, spread over the whole as evenly as they come (Weyl's equidistribution): a constant
    stride would see only some channels or columns.
    """
    if width <= NUMBERS:
        return np.arange(width)
    return np.unique((np.arange(NUMBERS) * GOLDEN % 1.0 * width).astype(np.int64))


def _by_input(call: Call, x: Tensor) -> list[Tensor] | None:
    """The operand as parts of (inputs, numbers); padding left out, in which case each input is a part of its own."""
    count = call.inputs
    if not x.is_floating_point() or x.dim() == 0 or x.numel() == 0 or x.shape[0] % count:
        return None
    if call.mask is None:
        return [x.reshape(count, -1)]
    tokens = call.mask.shape[1]
    # Rows of all texts below each other are (inputs x tokens, channels); heads are (inputs x heads, tokens, ...).
    rows = x.reshape(count, tokens, -1) if x.dim() == 2 and x.shape[0] == count * tokens else None
    whole = x.reshape(count, x.shape[0] // count, *x.shape[1:]) if rows is None else rows
    axes = [1] if rows is not None else [axis for axis in range(2, whole.dim()) if whole.shape[axis] == tokens]
    parts = []
    for number in range(count):
        part, real = whole[number], torch.nonzero(call.mask[number]).flatten().to(x.device)
        for axis in axes:
            part = part.index_select(axis - 1, real)
        if part.numel():
            parts.append(part.reshape(1, -1))
    return parts or None


def covers_of(executed_formats: Mapping[str, str], numbers: Tuned) -> dict[str, Ends]:
    """`layer:index` -> the ends beyond which its quantizer clips by more than half a step, or fp16 overflows.

    executed_formats: layer -> the name of its activation format.
    """
    found: dict[str, Ends] = {}
    for (layer, index), quantizer in numbers.quantizers.items():
        least, most = -quantizer.zero_point - 0.5, largest_code(quantizer.format) - quantizer.zero_point + 0.5
        found[f"{layer}:{index}"] = least * quantizer.scale, most * quantizer.scale
    for layer, name in executed_formats.items():
        if name == "fp16":
            found |= dict.fromkeys((f"{layer}:0", f"{layer}:1"), (-FP16_LARGEST, FP16_LARGEST))
    return found


def summarized(
    model: nn.Module, layers: Iterable[str], batches: Iterable[Inputs], covers: Mapping[str, Ends]
) -> dict[str, Summary]:
    """The summaries of a model's operands over some batches, in the order in which they run."""
    ear = Summarizer(covers)
    with listening(model, tuple(layers), ear), torch.inference_mode():
        for inputs in batches:
            forward(model, inputs)
    return ear.summaries


def activation_summaries(what: Exportable) -> dict[str, Any]:
    """A config's `activations`: `layer:index` -> the summary of INPUTS calibration inputs in the quantized network.

    Where the FP32 network has the same operands (no technique has restructured it), how they differ there is noted
    too, so that a service that still runs FP32 can be watched. Two passes over INPUTS inputs. Empty without data.
    """
    batches = () if what.task is None else tuple(what.task.calibration())
    if not batches:
        return {}
    chosen, _ = spread_rows(batches, (), INPUTS, INPUTS)
    names = tuple(what.workload.layer_names)
    formats = {name: what.executed.precision(name).activation.name for name in names}
    found = summarized(what.simulated(), names, chosen, covers_of(formats, what.numbers))
    if not STRUCTURE.intersection(how_quantized(what.config).stack.names):
        for key, plain in summarized(what.model, names, chosen, {}).items():
            if key in found and found[key].means.count == plain.means.count:
                found[key].fp32_shift = _shift(found[key], plain)
    return {key: summary.to_json() for key, summary in found.items() if summary.numbers}


def _shift(quantized: Summary, plain: Summary) -> tuple[float, float]:
    """By how much the quantized network's means and peaks are above FP32's, on average over inputs."""

    def middle(sketch: Any) -> float:
        values, weights = sketch.weighted()
        return float(np.average(values, weights=weights))

    return middle(quantized.means) - middle(plain.means), middle(quantized.peaks) - middle(plain.peaks)
