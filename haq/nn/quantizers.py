"""Round tensors to the number formats: symmetric per-channel weights, affine per-tensor activations, fp16 and bf16."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.errors import InputError
from haq.precision import Format, Precision

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

# Below the smallest normal number 1/scale overflows to infinity; no real range is that narrow.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
BLOCK = 2**19
"""Numbers that a thread rounds at a time on a CPU: 2 MB of fp32, which stay in a cache; smaller blocks gain nothing."""
_FLOAT_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def cast(x: Tensor, fmt: Format) -> Tensor:
    """`x` rounded to a float format and back to its own dtype; fp16 overflows to infinity above 65504, as the
    hardware does. fp32 returns `x` itself."""
    if fmt.name == "fp32":
        return x
    return x.to(_FLOAT_DTYPES[fmt.name]).to(x.dtype)


def largest_code(fmt: Format) -> int:
    """The largest code of an unsigned integer format: 255 for int8. The codes are 0 ... this."""
    return int(2**fmt.bits - 1)


def affine_parameters(low: NDArray[np.float64], high: NDArray[np.float64], levels: int) -> tuple[FloatArray, IntArray]:
    """Scales and zero-points that cover the ranges with codes 0 ... levels; 0.0 always has a code of its own.

    low, high: (n,) range ends; each range is widened to hold 0. A range of width 0 gets scale 1 (Jacob et al. 2018,
    section 3; the same rule as torch.ao's MinMaxObserver except for its larger smallest scale).
    """
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    width = high - low
    scale = np.where(width > 0, np.maximum(width / levels, SMALLEST_SCALE), 1.0)
    zero_point = np.clip(np.rint(-low / scale), 0, levels)
    return scale.astype(np.float32), zero_point.astype(np.int32)


@dataclass(frozen=True)
class ActivationQuantizer:
    """Static per-tensor affine quantizer of one operand: real = scale * (code - zero_point), codes 0 ... 2^bits - 1.

    A runtime with signed codes subtracts 2^(bits - 1) from code and zero-point alike; the numbers stay the same.
    """

    format: Format
    scale: float
    zero_point: int

    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of `x`, int32."""
        return torch.round(x * self._inverse).add_(self.zero_point).clamp_(0, largest_code(self.format)).int()

    def __call__(self, x: Tensor) -> Tensor:
        """`x` rounded to the nearest code and back (half to even); infinities saturate, NaN stays NaN.

        Multiplies by the rounded 1/scale, as torch.fake_quantize_per_tensor_affine does. That fused kernel is not used:
        on a CPU it is about eight times slower than these four vectorized passes, and it maps +inf to the lowest code.
        """
        whole = x.is_cuda or x.numel() <= BLOCK or torch.is_grad_enabled() or torch.compiler.is_compiling()
        flat = None if whole else in_memory_order(x)
        if flat is None:
            return self._round(torch.mul(x, self._inverse))
        rounded = torch.empty_like(x)  # in the order of x
        out = in_memory_order(rounded)
        assert out is not None, "an empty tensor has no gaps"
        for part, to in zip(_blocks(flat), _blocks(out), strict=True):
            self._round(torch.mul(part, self._inverse, out=to))
        return rounded

    def in_place(self, x: Tensor) -> Tensor:
        """The same numbers, written over `x` where its memory allows: for a tensor that nothing else reads.

        Fresh memory costs a CPU more than rounding does: above 32 MB the system maps and clears it for each tensor.
        """
        copies = torch.is_grad_enabled() or torch.compiler.is_compiling()
        flat = None if copies else in_memory_order(x)
        if flat is None:
            return self(x)
        for part in (flat,) if x.is_cuda else _blocks(flat):
            self._round(part.mul_(self._inverse))
        return x

    def _round(self, steps: Tensor) -> Tensor:
        low, high = self._steps
        return steps.round_().clamp_(low, high).mul_(self._scale)

    @cached_property
    def _inverse(self) -> Tensor:
        with torch.inference_mode(False):
            return _number(self.scale).reciprocal()

    @cached_property
    def _scale(self) -> Tensor:
        return _number(self.scale)

    @cached_property
    def _steps(self) -> tuple[float, float]:
        """The least and largest multiple of the scale."""
        return float(-self.zero_point), float(largest_code(self.format) - self.zero_point)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight as it is stored: real = scale * code.

    codes: int8 tensor of the weight's shape, in -largest ... largest: the code -2^(bits-1) stays unused, so that -w has
    the codes of w negated and a product of two codes plus its neighbour fits the 16-bit sums of integer dot products
    (TFLite, TensorRT and ONNX Runtime restrict weights likewise). scales: (channels,) fp32; of a group-wise format
    (channels, blocks), one for every `format.group` consecutive elements of the channel.
    """

    format: Format
    codes: Tensor
    scales: Tensor
    channel_axis: int

    def dequantize(self) -> Tensor:
        if self.format.group is None:
            return self.codes.to(self.scales.dtype) * _along(self.scales, self.codes, self.channel_axis)
        channels = self.codes.movedim(self.channel_axis, 0)
        rows = channels.reshape(len(channels), -1)
        scales = self.scales.repeat_interleave(self.format.group, dim=1)[:, : rows.shape[1]]
        return (rows * scales).reshape(channels.shape).movedim(0, self.channel_axis).contiguous()


def in_memory_order(x: Tensor) -> Tensor | None:
    """(n,) view of all numbers in the order of their memory, whatever the order of axes; None where the memory has gaps
    or serves several places."""
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
    return x.view(-1) if x.is_contiguous() else None


def _blocks(flat: Tensor) -> tuple[Tensor, ...]:
    """Parts that fit the caches of all threads: in them the passes over a large tensor take half the time."""
    size = BLOCK * torch.get_num_threads()
    return (flat,) if flat.numel() <= size else torch.split(flat, size)


def _number(value: float) -> Tensor:
    """A tensor of one number, which torch multiplies with in a third of the time that a Python float takes."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device="cpu")


def executed_weight(stored: QuantizedWeight | Tensor, precision: Precision) -> Tensor:
    """The weight that the layer multiplies with: a stored integer weight dequantized, a float one cast, and either
    rounded once more to the activation format where that is a float format (storage only, computed wide)."""
    weight = stored.dequantize() if isinstance(stored, QuantizedWeight) else cast(stored, precision.weight)
    return weight if precision.compute.is_integer else cast(weight, precision.compute)


def largest_by_channel(weight: Tensor, channel_axis: int) -> Tensor:
    """(channels,) the largest magnitude of every channel of a weight."""
    return weight.movedim(channel_axis, 0).flatten(1).abs().amax(dim=1)


def check_finite(x: Tensor, where: str) -> None:
    """Raises InputError if the tensor holds NaN or infinity."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        raise InputError(
            "not every number is finite",
            where=where,
            got=float(x[~finite][0]),
            expected="finite numbers",
            way_out="look at the weights or data it comes from",
        )


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)
