"""Quantizers that learn: rounding with a straight-through gradient, and step sizes with the gradient of LSQ.

LSQ: Esser et al. 2020, "Learned Step Size Quantization" (ICLR 2020). Two things differ from the paper: a step is
learned as the logarithm of its ratio to where it started (as in Jain et al. 2020, TQT), and a weight as a fraction of
its channel's range. An optimizer such as Adam moves every number by about the learning rate, which then means the same
in every layer; a folded channel whose weights are a thousand times smaller would otherwise be overwritten.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, cast, largest_by_channel, largest_code
from haq.precision import Format, Precision

Stored = QuantizedWeight | Tensor
"""A weight as it is stored: codes and scales, or float numbers."""

INSIDE = 0.49
"""How far from its code, in steps, a weight may start: nearer than to the next code, whatever the last bit does."""


def round_to_steps(x: Tensor, step: Tensor, low: float, high: float, gradient_scale: float) -> Tensor:
    """`step * clamp(round(x / step), low, high)`, with a gradient for `x` and for `step`.

    step: positive, of as many axes as x and broadcast to it. low, high: whole numbers. With v = x / step, the gradient
    of x is 1 where low < v < high and 0 elsewhere (equation 5 of the paper); that of step is round(v) - v inside, and
    low or high outside (equation 3), summed over what shares the step, times gradient_scale (section 2.2).
    """
    rounded: Tensor = _Steps.apply(x, step, low, high, gradient_scale)  # type: ignore[no-untyped-call]
    return rounded


def round_to_format(x: Tensor, fmt: Format) -> Tensor:
    """`x` rounded to a float format and back; the gradient passes straight through, in full precision."""
    if fmt.name == "fp32":
        return x
    rounded: Tensor = _Cast.apply(x, fmt)  # type: ignore[no-untyped-call]
    return rounded


class LearnedOperand(nn.Module):
    """An activation quantizer whose step is learned; its zero point stays. It changes: it is trained."""

    _start: Tensor

    def __init__(self, start: ActivationQuantizer, features: int) -> None:
        """features: how many numbers of one sample it rounds, N_F in the paper."""
        super().__init__()
        self._format, self._zero_point = start.format, start.zero_point
        self._low, self._high = float(-start.zero_point), float(largest_code(start.format) - start.zero_point)
        # With a zero point, Q_P is the number of codes on the wider side of zero.
        self._gradient_scale = 1 / math.sqrt(max(1, features) * max(self._high, -self._low))
        self.register_buffer("_start", torch.tensor(start.scale), persistent=False)
        self.log_step = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return round_to_steps(x, self._step(), self._low, self._high, self._gradient_scale)

    def frozen(self) -> ActivationQuantizer:
        """The quantizer that it has become; it rounds exactly as this one does."""
        return ActivationQuantizer(self._format, float(self._step().detach()), self._zero_point)

    def _step(self) -> Tensor:
        return self._start * self.log_step.exp()


class LearnedWeight(nn.Module):
    """A weight that is trained as it is executed: rounded per channel to an integer format, or cast to a float one.

    It changes: it is trained. `value` is the weight in units of its channel's range at the start.
    """

    _start: Tensor
    _unit: Tensor

    def __init__(self, weight: Tensor, start: Stored, channel_axis: int, precision: Precision) -> None:
        """weight: in full precision. start: as it is stored; training begins at these codes, whoever chose them."""
        super().__init__()
        self._precision, self._axis = precision, channel_axis
        self._fmt = precision.weight
        if isinstance(start, QuantizedWeight):
            self._largest = float(start.format.largest)
            ranges = start.scales * self._largest
            weight = _near(weight, start.codes.to(weight.dtype), self._along(start.scales, weight), self._largest)
            self._gradient_scale = 1 / math.sqrt(max(1, weight.numel() // len(ranges)) * self._largest)
            self.register_buffer("_start", start.scales.clone(), persistent=False)
            self.log_step = nn.Parameter(torch.zeros_like(start.scales))
        else:
            ranges = largest_by_channel(weight, channel_axis)
        # Powers of two, so that a weight which does not move keeps its every bit.
        unit = torch.exp2(torch.floor(torch.log2(torch.where(ranges > 0, ranges, torch.ones_like(ranges)))))
        self.register_buffer("_unit", self._along(unit, weight), persistent=False)
        value = weight / self._unit
        # Half the time of torch's usual order of axes on a CPU; the values are the same.
        self.value = nn.Parameter(value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value)

    def forward(self) -> Tensor:
        weight = self.value * self._unit
        if self._fmt.is_integer:
            step = self._along(self._step(), weight)
            weight = round_to_steps(weight, step, -self._largest, self._largest, self._gradient_scale)
        else:
            weight = round_to_format(weight, self._fmt)
        return weight if self._precision.compute.is_integer else round_to_format(weight, self._precision.compute)

    @torch.no_grad()
    def frozen(self) -> Stored:
        """What is stored of it: codes and scales that give what `forward` does, or the float weight before its cast."""
        weight = self.value * self._unit
        if not self._fmt.is_integer:
            return weight.contiguous()
        step = self._step()
        codes = _codes(weight, self._along(step, weight), -self._largest, self._largest)
        dtype = torch.int8 if self._fmt.bits <= 8 else torch.int16
        return QuantizedWeight(self._fmt, codes.to(dtype).contiguous(), step.clone(), self._axis)

    def _step(self) -> Tensor:
        return self._start * self.log_step.exp()

    def _along(self, values: Tensor, like: Tensor) -> Tensor:
        shape = [1] * like.dim()
        shape[self._axis] = -1
        return values.reshape(shape)


class LearnedBias(nn.Module):
    """A bias that is trained in units of what its channel's weights can add. It changes: it is trained."""

    _unit: Tensor

    def __init__(self, bias: Tensor, unit: Tensor, fmt: Format) -> None:
        """unit: (channels,) positive. fmt: the format of the layer's sums."""
        super().__init__()
        self._fmt = fmt
        self.register_buffer("_unit", torch.exp2(torch.floor(torch.log2(unit))), persistent=False)
        self.value = nn.Parameter(bias / self._unit)

    def forward(self) -> Tensor:
        return round_to_format(self.value * self._unit, self._fmt)

    @torch.no_grad()
    def frozen(self) -> Tensor:
        """The bias before its cast."""
        return self.value * self._unit


class _Steps(torch.autograd.Function):
    """See `round_to_steps`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high, ctx.gradient_scale = low, high, gradient_scale
        return _codes(x, step, low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, step = ctx.saved_tensors
        steps = x * step.reciprocal()
        # The gradient of a clamp: zero at and beyond both ends.
        inside = torch.ops.aten.hardtanh_backward(grad, steps, ctx.low, ctx.high)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None, None
        codes = torch.round(steps).clamp_(ctx.low, ctx.high)
        # Inside, grad (round(v) - v); outside, grad low or grad high.
        of_step = codes.mul_(grad).sub_(steps.mul_(inside))
        summed = of_step.sum_to_size(step.shape) if step.dim() else of_step.sum()
        return inside, summed * ctx.gradient_scale, None, None, None


class _Cast(torch.autograd.Function):
    """See `round_to_format`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: Format) -> Tensor:
        return cast(x, fmt)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _codes(x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    # By the rounded 1/step, as ActivationQuantizer does, so that training and the frozen model agree in every bit.
    return torch.round(x * step.reciprocal()).clamp_(low, high)


def _near(weight: Tensor, codes: Tensor, scales: Tensor, largest: float) -> Tensor:
    """The weight, moved as little as makes it round to these codes."""
    infinity = torch.full_like(codes, math.inf)
    low = torch.where(codes > -largest, codes - INSIDE, -infinity)
    high = torch.where(codes < largest, codes + INSIDE, infinity)
    return (weight / scales).maximum(low).minimum(high) * scales
