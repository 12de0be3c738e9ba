"""What an integer accumulator that is too narrow does to a layer's sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.errors import InputError
from haq.hardware.accumulators import has_one_input_per_output
from haq.hardware.machine import PAIRS, accumulator_bits
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, largest_code
from haq.nn.tuned import Tuned, bias_key
from haq.precision import Precision
from haq.workload import LayerSpec

AT_ONCE = 2**24
"""Numbers of an unfolded input that are held at a time."""


@dataclass(frozen=True, eq=False)
class Accumulator:
    """The sums of one layer. low, high: what the accumulator holds. convolution: the module, where pairs saturate.

    The sums are of (activation code - zero-point) x weight code: runtimes fold the zero-point's part into the bias that
    the sum starts from (ONNX Runtime, qlinearconv.cc, `column_sums_`). They are recovered from the fp32 result, exactly
    up to 2^24 and to fp32's rounding beyond; what pairs lose is exact. A sum that does not fit is cut off at the end:
    saturating instructions do that, and one that wraps around instead does more harm.
    """

    layer: LayerSpec
    weight: QuantizedWeight
    operand: ActivationQuantizer
    bias: Tensor | None
    low: int
    high: int
    is_paired: bool = False
    convolution: nn.Conv2d | None = None

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's result as the accumulator leaves it. x: the rounded operand."""
        sums = self.sums(y)
        held = (sums + self._lost_in_pairs(x, sums.shape) if self.is_paired else sums).clamp(self.low, self.high)
        return y + ((held - sums) * self._steps(y).double()).to(y.dtype)

    def sums(self, y: Tensor) -> Tensor:
        """The integers behind a result, float64."""
        exact = y.double() if self.bias is None else y.double() - self._along(self.bias, y).double()
        return torch.round(exact / self._steps(y).double().clamp(min=torch.finfo(torch.float32).tiny))

    def cut_off(self, y: Tensor, x: Tensor) -> Tensor:
        """Which sums the accumulator cannot hold, or loses a part of."""
        sums = self.sums(y)
        beyond = (sums < self.low) | (sums > self.high)
        return beyond | (self._lost_in_pairs(x, sums.shape) != 0) if self.is_paired else beyond

    def _steps(self, y: Tensor) -> Tensor:
        return self._along(self.weight.scales * self.operand.scale, y)

    def _along(self, values: Tensor, y: Tensor) -> Tensor:
        """Values per output channel, beside the result: channels come after the batch in convolutions, else last."""
        return values.reshape(-1, *[1] * (y.dim() - 2)) if self.layer.kind.startswith("conv") else values

    def _lost_in_pairs(self, x: Tensor, shape: torch.Size) -> Tensor:
        """What sums lose in saturated pairs: neighbouring inputs of a linear layer, neighbouring channels at one tap of
        a convolution, since channels come last in its columns. With an odd number of channels the last one of a tap
        goes with the first one of the next (ONNX Runtime's im2col; oneDNN would pad it). Only pairs that can saturate
        are computed."""
        codes = self.operand.codes(x).double()
        weight = self.weight.codes.double().flatten(1)
        taps = weight.shape[1] // self.weight.codes.shape[1]
        packed = torch.arange(weight.shape[1]).reshape(-1, taps).T.flatten()
        pairs = packed[: len(packed) // 2 * 2].reshape(-1, 2).T
        largest = largest_code(self.operand.format)
        risky = largest * weight[:, pairs].abs().sum(dim=1) > torch.iinfo(torch.int16).max
        lost = torch.zeros(shape, dtype=torch.float64)
        if not self.layer.kind.startswith("conv"):
            for channel in torch.nonzero(risky.any(dim=1))[:, 0].tolist():
                lost[..., channel] = _saturation(codes, weight[channel], pairs[:, risky[channel]])
            return lost
        flat, groups = lost.flatten(2), self.layer.groups
        step = max(1, AT_ONCE // max(1, groups * weight.shape[1] * flat.shape[2]))
        for start in range(0, len(codes), step):
            columns = self._columns(codes[start : start + step])
            columns = columns.reshape(*columns.shape[:2], groups, -1)  # (n, places, groups, inputs of one)
            for channel in torch.nonzero(risky.any(dim=1))[:, 0].tolist():
                read = columns[:, :, channel * groups // len(weight)]
                flat[start : start + step, channel] = _saturation(read, weight[channel], pairs[:, risky[channel]])
        return flat.reshape(shape)

    def _columns(self, codes: Tensor) -> Tensor:
        conv, zero = self.convolution, self.operand.zero_point
        assert conv is not None, "pairs of a convolution need its geometry"
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        # Zeros are the zero-point's code, so padding comes before it is added.
        padded = functional.pad(codes - zero, conv._reversed_padding_repeated_twice, mode)
        columns = functional.unfold(padded, _size(conv.kernel_size), _size(conv.dilation), 0, _size(conv.stride))
        return columns.movedim(1, -1) + zero


def sums_integers(precision: Precision) -> bool:
    """Whether a layer multiplies codes by codes with one scale per output channel, and so sums integers."""
    weight, activation = precision.weight, precision.activation
    return weight.is_integer and weight.group is None and activation.is_integer and not activation.per_token


def accumulator_of(model: nn.Module, layer: LayerSpec, precision: Precision, numbers: Tuned, named: str) -> Accumulator:
    """The accumulator of a layer; raises InputError on an unknown one, and where the layer has no integer sums.

    named: `int32`, or `intN` with any other number of bits, or `int16-pairs`, whose pairs go into an int32.
    """
    bits = accumulator_bits(named)
    stored = numbers.weights[layer.weight.key] if layer.weight is not None else None
    operand = numbers.quantizers.get((layer.name, 0))
    if not isinstance(stored, QuantizedWeight) or stored.format.group is not None or operand is None:
        raise InputError(
            "the layer has no sums of integers", where=layer.name, got=str(precision),
            expected="integer weights with one scale per output channel, and a static integer operand",
        )  # fmt: skip
    key = bias_key(model, layer)
    bias, limit = None if key is None else numbers.biases[key], 2 ** (bits - 1)
    if named != PAIRS:
        return Accumulator(layer, stored, operand, bias, -limit, limit - 1)
    module = dict(model.named_modules()).get(layer.module)
    convolution = module if isinstance(module, nn.Conv2d) else None
    if layer.kind != "linear" and (convolution is None or has_one_input_per_output(layer)):
        raise InputError(
            "the layer does not sum in pairs", where=layer.name, got=layer.kind,
            expected="a linear layer or a 2-d convolution that is not depthwise",
        )  # fmt: skip
    return Accumulator(layer, stored, operand, bias, -limit, limit - 1, True, convolution)


def _size(of: tuple[int, ...]) -> tuple[int, int]:
    return of[0], of[1]


def _saturation(codes: Tensor, weight: Tensor, pairs: Tensor) -> Tensor:
    """(...,) what the sum loses in these pairs. codes: (..., inputs); weight: (inputs,); pairs: (2, n) inputs."""
    products = codes[..., pairs[0]] * weight[pairs[0]] + codes[..., pairs[1]] * weight[pairs[1]]
    limits = torch.iinfo(torch.int16)
    return (products.clamp(limits.min, limits.max) - products).sum(dim=-1)
