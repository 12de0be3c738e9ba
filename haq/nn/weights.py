"""Quantizes each weight once per format and keeps it, so that a candidate is put together from references."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.nn.observers import WEIGHT_OBSERVERS
from haq.nn.quantizers import QuantizedWeight, cast, check_finite, executed_weight, quantize_weight
from haq.precision import FORMATS, Format, Precision


class WeightCache:
    """Quantized weights and cast biases by name and format. It changes as it is used: it fills.

    Memory: per weight one fp32 copy for each distinct (stored format, arithmetic) that was asked for, and an int8 copy
    for each integer format.
    """

    def __init__(self, observer: str) -> None:
        self._observer = WEIGHT_OBSERVERS[observer]
        self._stored: dict[tuple[str, Format], QuantizedWeight] = {}
        self._executed: dict[tuple[str, Format, Format], nn.Parameter] = {}

    def stored(self, name: str, weight: Tensor, channel_axis: int, fmt: Format) -> QuantizedWeight:
        """Codes and scales in an integer format; raises InputError if the weight is not finite."""
        if (name, fmt) not in self._stored:
            with torch.inference_mode(False), torch.no_grad():
                check_finite(weight, name)
                weight = weight.detach().clone()  # a normal tensor, also when the model runs in inference mode
                self._stored[name, fmt] = quantize_weight(
                    weight, self._observer(weight, channel_axis, fmt), channel_axis, fmt
                )
        return self._stored[name, fmt]

    def executed(self, name: str, weight: Tensor, channel_axis: int, precision: Precision) -> nn.Parameter:
        """What the layer multiplies with, as `quantizers.executed_weight` defines it."""
        key = name, precision.weight, arithmetic(precision)
        if key not in self._executed:
            integer = precision.weight.is_integer
            with torch.inference_mode(False), torch.no_grad():
                source = self.stored(name, weight, channel_axis, precision.weight) if integer else weight.detach()
                self._executed[key] = nn.Parameter(executed_weight(source, precision).clone(), requires_grad=False)
        return self._executed[key]

    def bias(self, name: str, bias: Tensor, precision: Precision) -> nn.Parameter:
        """Integer products add the bias to their wide sum; float arithmetic holds it in its own format."""
        key = name, arithmetic(precision), arithmetic(precision)
        if key not in self._executed:
            with torch.inference_mode(False), torch.no_grad():
                self._executed[key] = nn.Parameter(cast(bias.detach(), arithmetic(precision)), requires_grad=False)
        return self._executed[key]


def arithmetic(precision: Precision) -> Format:
    """The format of sums and biases: fp32 beside integer products, else the activation format."""
    return FORMATS["fp32"] if precision.compute.is_integer else precision.compute
