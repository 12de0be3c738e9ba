"""What an integer accumulator that is too narrow does to a layer's sums, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.errors import InputError
from haq.hardware.legalize import arithmetic_of, executable
from haq.hardware.machine import PAIRS, accumulator_bits
from haq.hardware.schema import HardwareProfile
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, largest_code
from haq.nn.tuned import Tuned, bias_key
from haq.precision import Assignment, Precision
from haq.workload import LayerSpec, Workload

Size = tuple[int, int]
AT_ONCE = 2**24
"""Numbers of an unfolded input that are held at a time."""


@dataclass(frozen=True, eq=False)
class Accumulator:
    """The sums of one layer. low, high: what the accumulator holds. geometry: kernel, dilation, padding and stride of a
    convolution whose pairs saturate.

    The sums are of (activation code - zero-point) x weight code: runtimes fold the zero-point's part into the bias that
    the sum starts from. A sum that does not fit is cut off at the end: saturating instructions do that, and one that
    wraps around instead does more harm.
    """

    layer: LayerSpec
    weight: QuantizedWeight
    operand: ActivationQuantizer
    bias: Tensor | None
    low: int
    high: int
    is_paired: bool = False
    geometry: tuple[Size, Size, Size, Size] | None = None

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
        a convolution, as kernels with channels last pack them. Only pairs that can saturate are computed."""
        codes = self.operand.codes(x).double()
        weight = self.weight.codes.double().flatten(1)
        taps = weight.shape[1] // self.weight.codes.shape[1]
        first = torch.arange(weight.shape[1]).reshape(-1, taps)[0::2].flatten()
        first = first[first + taps < weight.shape[1]]
        pairs = torch.stack([first, first + taps])
        largest = largest_code(self.operand.format)
        risky = largest * weight[:, pairs].abs().sum(dim=1) > torch.iinfo(torch.int16).max
        lost = torch.zeros(shape, dtype=torch.float64)
        if not self.layer.kind.startswith("conv"):
            for channel in torch.nonzero(risky.any(dim=1))[:, 0].tolist():
                lost[..., channel] = _saturation(codes, weight[channel], pairs[:, risky[channel]])
            return lost
        flat = lost.flatten(2)
        step = max(1, AT_ONCE // max(1, weight.shape[1] * flat.shape[2]))
        for start in range(0, len(codes), step):
            columns = self._columns(codes[start : start + step])  # (n, places, inputs)
            for channel in torch.nonzero(risky.any(dim=1))[:, 0].tolist():
                flat[start : start + step, channel] = _saturation(columns, weight[channel], pairs[:, risky[channel]])
        return flat.reshape(shape)

    def _columns(self, codes: Tensor) -> Tensor:
        assert self.geometry is not None, "pairs of a convolution need its geometry"
        shifted = codes - self.operand.zero_point  # padding is the zero-point, which unfold fills with 0
        return functional.unfold(shifted, *self.geometry).movedim(1, -1) + self.operand.zero_point


def sums_integers(precision: Precision) -> bool:
    """Whether a layer in it sums products of codes that one scale per output channel makes numbers of."""
    weight, activation = precision.weight, precision.activation
    return weight.is_integer and weight.group is None and activation.is_integer and not activation.per_token


def accumulators_on(
    profile: HardwareProfile, model: nn.Module, workload: Workload, executed: Assignment
) -> dict[str, str]:
    """Layer -> what the target sums its products in, of the layers whose row of [arithmetic] says so.

    Left out is what sums no integers, or runs on the target in another precision. In pairs only linear layers and plain
    2-d convolutions are summed: a depthwise one has a single channel for each of its outputs.
    """
    modules, found = dict(model.named_modules()), {}
    for layer in workload.layers if profile.accumulators else ():
        precision = executed.precision(layer.name)
        if layer.weight is None or layer.kind == "embedding" or not sums_integers(precision):
            continue
        if precision not in executable(profile, layer):
            continue
        named = profile.accumulators.get(arithmetic_of(profile, layer, precision))
        if named is not None and (named != PAIRS or layer.kind == "linear" or _is_plain(modules.get(layer.module))):
            found[layer.name] = named
    return found


def _is_plain(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)


def accumulator_of(model: nn.Module, layer: LayerSpec, precision: Precision, numbers: Tuned, named: str) -> Accumulator:
    """The accumulator of a layer; raises InputError on an unknown one, and where the layer has no integer sums.

    named: `int32`, or `intN` with any other number of bits, or `int16-pairs`, whose pairs go into an int32.
    """
    bits = accumulator_bits(named)
    stored = numbers.weights[layer.weight.key] if layer.weight is not None else None
    operand = numbers.quantizers.get((layer.name, 0))
    if not isinstance(stored, QuantizedWeight) or not sums_integers(precision) or operand is None:
        raise InputError(
            "the layer has no sums of integers", where=layer.name, got=str(precision),
            expected="integer weights with one scale per output channel, and a static integer operand",
        )  # fmt: skip
    key = bias_key(model, layer)
    bias, limit = None if key is None else numbers.biases[key], 2 ** (bits - 1)
    if named != PAIRS:
        return Accumulator(layer, stored, operand, bias, -limit, limit - 1)
    module, geometry = dict(model.named_modules()).get(layer.module), None
    if layer.kind.startswith("conv"):
        if not _is_plain(module):
            raise InputError("pairs are simulated for plain 2-d convolutions", where=layer.name, got=layer.kind)
        sizes = (module.kernel_size, module.dilation, module.padding, module.stride)
        kernel, dilation, padding, stride = ((int(size[0]), int(size[1])) for size in sizes)
        geometry = kernel, dilation, padding, stride
    return Accumulator(layer, stored, operand, bias, -limit, limit - 1, True, geometry)


def _saturation(codes: Tensor, weight: Tensor, pairs: Tensor) -> Tensor:
    """(...,) what the sum loses in these pairs. codes: (..., inputs); weight: (inputs,); pairs: (2, n) inputs."""
    products = codes[..., pairs[0]] * weight[pairs[0]] + codes[..., pairs[1]] * weight[pairs[1]]
    limits = torch.iinfo(torch.int16)
    return (products.clamp(limits.min, limits.max) - products).sum(dim=-1)
