"""What a layer's operands look like beside the numbers that their format holds, gathered batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.diagnose.evidence import OperandEvidence, Range
from haq.nn.diagnosis.decibel import channel_axis, decibel, largest_of, power
from haq.nn.diagnosis.magnitudes import Magnitudes, counted
from haq.nn.diagnosis.subject import Calibrated
from haq.nn.ptq.per_token import round_per_token
from haq.nn.quantizers import ActivationQuantizer, cast, largest_code
from haq.precision import Format
from haq.workload import LayerSpec

Floats = NDArray[np.float64]
BINS = 512
"""Of the histogram in the evidence."""
CODES_LOOKED_AT = 2**16
"""Numbers per batch in which used codes are counted."""
SEED = 0


@dataclass(frozen=True, eq=False)
class Rounding:
    """How an operand is rounded. quantizer: of a static integer format."""

    format: Format
    quantizer: ActivationQuantizer | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.quantizer is not None:
            return self.quantizer(x)
        return round_per_token(x, self.format) if self.format.per_token else cast(x, self.format)

    def range(self, seen: Range) -> Range:
        """The least and largest number that the format holds; per token what the largest token reaches."""
        if self.quantizer is not None:
            scale, zero, top = self.quantizer.scale, self.quantizer.zero_point, largest_code(self.format)
            return -zero * scale, (top - zero) * scale
        largest = max(map(abs, seen)) if self.format.per_token else self.format.largest
        return -largest, largest


@dataclass(eq=False)
class OperandSums:
    """Sums over what one operand was so far. It changes: it fills."""

    layer: LayerSpec
    index: int
    rounding: Rounding
    low: float = math.inf
    high: float = -math.inf
    signal: float = 0.0
    noise: float = 0.0
    clipped: float = 0.0
    overflows: float = 0.0
    underflows: float = 0.0
    numbers: int = 0
    channel_low: Floats = field(default_factory=lambda: np.zeros(0))
    channel_high: Floats = field(default_factory=lambda: np.zeros(0))
    counts: Floats = field(default_factory=lambda: np.zeros(1))
    codes: set[int] = field(default_factory=set)

    def add(self, x: Tensor) -> Tensor:
        """Count `x`, and give what the layer reads in its place."""
        fmt, finite = self.rounding.format, bool(torch.isfinite(x.sum()))
        low, high = (float(end) for end in torch.aminmax(x if finite else x.nan_to_num(0.0, 0.0, 0.0)))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.numbers += x.numel()
        self.counts = self.counts + counted(x)
        axis = channel_axis(self.layer.kind, x.dim())
        others = [a for a in range(x.dim()) if a != axis]
        self.channel_high = largest_of(self.channel_high, x.amax(others).double().cpu().numpy())
        self.channel_low = -largest_of(-self.channel_low, -x.amin(others).double().cpu().numpy())
        self.signal += power(x)
        rounded = self.rounding(x)
        if rounded is not x:
            self.noise += power(rounded - x)
        if fmt.is_integer:
            self._count_codes(x, low, high)
        elif fmt.name != "fp32":
            self.overflows += float(torch.isinf(rounded).sum()) - float(torch.isinf(x).sum())
            self.underflows += float(((rounded == 0) & (x != 0)).sum())
        return rounded

    def _count_codes(self, x: Tensor, low: float, high: float) -> None:
        quantizer = self.rounding.quantizer
        if quantizer is None:
            return
        bottom, top = self.rounding.range((low, high))
        half = quantizer.scale / 2
        if low < bottom - half or high > top + half:
            self.clipped += float(((x < bottom - half) | (x > top + half)).sum())
        flat = x.flatten()
        if flat.numel() > CODES_LOOKED_AT:
            drawn = torch.randint(flat.numel(), (CODES_LOOKED_AT,), generator=torch.Generator().manual_seed(SEED))
            flat = flat[drawn.to(flat.device)]
        ends = flat.new_tensor([low, high])
        self.codes.update(torch.unique(quantizer.codes(torch.cat([flat, ends]))).tolist())

    def evidence(self, calibrated: Calibrated | None) -> OperandEvidence:
        """What the sums say; `calibrated` where calibration kept a summary of this operand."""
        fmt, quantizer, total = self.rounding.format, self.rounding.quantizer, max(self.numbers, 1)
        seen = (self.low, self.high)
        held = Magnitudes.of(self.counts)
        sqnr = decibel(self.signal, self.noise)
        in_use = self.rounding.range(seen)
        best_range, best, by_channel = in_use, sqnr, sqnr
        if fmt.is_integer:
            levels = largest_code(fmt)
            tried = held.best_range(seen, levels)
            found = decibel(self.signal, held.error(*tried, levels))
            if found > sqnr:
                best_range, best = tried, found
            by_channel = max(best, decibel(self.signal, self._channel_noise(held, levels)))
        summary = _calibrated(calibrated, (self.layer.name, self.index), quantizer, (in_use, seen))
        edges = np.linspace(self.low, self.high, BINS + 1) if self.high > self.low else np.array([self.low, self.high])
        return OperandEvidence(
            layer=self.layer.name,
            index=self.index,
            format=fmt,
            range=in_use,
            seen=seen,
            calibrated=None if summary is None else summary[0],
            sqnr_db=sqnr,
            best_sqnr_db=best,
            best_range=best_range,
            channel_sqnr_db=by_channel,
            channel_largest=np.maximum(self.channel_high, -self.channel_low),
            codes_used=len(self.codes) / (largest_code(fmt) + 1) if quantizer is not None else 1.0,
            clipped_share=self.clipped / total,
            calibrated_clipped_share=None if summary is None else summary[1],
            calibrated_beyond_share=None if summary is None else summary[2],
            overflow_share=self.overflows / total,
            underflow_share=self.underflows / total,
            not_finite=self.numbers - int(held.total),
            edges=edges,
            counts=held.between(edges),
        )

    def _channel_noise(self, held: Magnitudes, levels: int) -> float:
        """Summed squared error with a range for each channel that holds all of it; zeros are exact."""
        steps = (np.maximum(self.channel_high, 0) - np.minimum(self.channel_low, 0)) / levels
        tiny = np.finfo(np.float32).tiny
        zeros = float(held.counts[(held.low >= -2 * tiny) & (held.high <= 2 * tiny)].sum())
        return (held.total - zeros) * float(np.mean(steps**2)) / 12


def _calibrated(
    calibrated: Calibrated | None,
    operand: tuple[str, int],
    quantizer: ActivationQuantizer | None,
    ranges: tuple[Range, Range],
) -> tuple[Range, float, float] | None:
    """The range of calibration data, the share of it that is clipped, and that of it, zeros left out, beyond served
    data; None where no summary was kept. ranges: in use, and seen on served data."""
    if calibrated is None or operand not in calibrated.rows:
        return None
    row, histograms = calibrated.rows[operand], calibrated.histograms
    low, high, counts = float(histograms.low[row]), float(histograms.high[row]), histograms.counts[row]
    if quantizer is None or low == high:
        return (low, high), 0.0, 0.0
    edges = np.linspace(low, high, len(counts) + 1)
    bins = Magnitudes(edges[:-1][counts > 0], edges[1:][counts > 0], counts[counts > 0])
    (bottom, top), seen = ranges
    half = quantizer.scale / 2
    share = bins.outside(bottom - half, top + half)
    clipped = share * bins.total / max(bins.total + float(histograms.zeros[row]), 1.0)
    return (low, high), clipped, bins.outside(*seen)
