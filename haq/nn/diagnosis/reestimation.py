"""Gives every output channel of a quantized network the mean and deviation that it has in FP32, layer after layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from haq.nn.diagnosis.decibel import channel_axis
from haq.nn.diagnosis.subject import Subject
from haq.nn.instrument import Onlooker, instrument_ops
from haq.nn.ptq.bn_reestimation import MOST_GAIN
from haq.nn.quantizers import QuantizedWeight
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, forward
from haq.nn.tuned import Result, bias_key, build_tuned
from haq.workload import LayerSpec

CONSTANT = 1e-4
"""A channel whose deviation is a smaller share of its mean (or of the layer's largest) is left as it is."""


@dataclass(frozen=True, eq=False)
class Moments:
    """(channels,) mean and deviation of a layer's output over one batch."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def reestimated(subject: Subject, batches: Sequence[Inputs]) -> Subject:
    """The subject with a gain for each weight scale and a shift for each bias, so that outputs match FP32's.

    What a batch norm does whose statistics are measured again behind quantized layers (Sun et al. 2019; AIMET's
    re-estimation), for networks whose norms are folded or that have none. One pass per batch: each layer's output is
    corrected as the network runs, so that later layers are measured behind corrected ones; what batches ask for is
    averaged. A layer without a bias gets the gain alone; tables, transposed convolutions and weights that several
    layers share are left.
    """
    corrected = _layers(subject)
    total: dict[str, tuple[Tensor, Tensor]] = {}
    for inputs in batches:
        with torch.inference_mode():
            probe = _Exact(corrected)
            model = shared_copy(subject.model)
            instrument_ops(model, subject.workload, probe, frozenset(corrected))
            forward(model, inputs)
            found = _Correction(subject, corrected, probe.found)
            results = {**subject.results()}
            listening = {name: found.behind(name, results.get(name)) for name in corrected}
            built = build_tuned(
                subject.model, subject.workload, subject.executed, subject.numbers, {**results, **listening}
            )
            forward(built, inputs)
        for name, (gain, shift) in found.asked.items():
            before = total.get(name, (torch.zeros_like(gain), torch.zeros_like(shift)))
            total[name] = before[0] + gain / len(batches), before[1] + shift / len(batches)
    return _applied(subject, corrected, total)


def _layers(subject: Subject) -> dict[str, LayerSpec]:
    """Those whose output's scale and mean are in their own weight and bias."""
    keys = Counter(layer.weight.key for layer in subject.workload.layers if layer.weight is not None)
    return {
        layer.name: layer
        for layer in subject.workload.layers
        if layer.weight is not None
        and keys[layer.weight.key] == 1
        and layer.kind != "embedding"
        and not layer.kind.startswith("conv_transpose")
    }


def _applied(subject: Subject, layers: Mapping[str, LayerSpec], asked: Mapping[str, tuple[Tensor, Tensor]]) -> Subject:
    """y -> gain y + shift, in the weight's scales (or the float weight) and the bias."""
    weights, biases = dict(subject.numbers.weights), dict(subject.numbers.biases)
    for name, (gain, shift) in asked.items():
        layer = layers[name]
        assert layer.weight is not None
        with torch.inference_mode(False):
            gain, shift = gain.clone(), shift.clone()
        stored, axis = weights[layer.weight.key], layer.weight.channel_axis
        if isinstance(stored, QuantizedWeight):
            along = gain if stored.scales.dim() == 1 else gain[:, None]
            weights[layer.weight.key] = replace(stored, scales=stored.scales * along)
        else:
            shape = [1] * stored.dim()
            shape[axis] = -1
            weights[layer.weight.key] = stored * gain.reshape(shape)
        if (key := bias_key(subject.model, layer)) is not None:
            biases[key] = biases[key] * gain + shift
    return subject.with_(numbers=replace(subject.numbers, weights=weights, biases=biases))


class _Exact(Onlooker):
    """The probe that keeps FP32's moments. It changes as the model runs; of two outputs (before and after the bias, on
    strided input) the last one counts, and their number is kept."""

    def __init__(self, layers: Mapping[str, LayerSpec]) -> None:
        self._layers = layers
        self.found: dict[str, tuple[Moments, int]] = {}

    def output(self, layer: str, y: Tensor) -> Tensor:
        shown = self.found[layer][1] if layer in self.found else 0
        self.found[layer] = _moments(self._layers[layer], y), shown + 1
        return y


class _Correction:
    """Corrects outputs as the quantized network runs. It changes then: `asked` fills, layer -> (gain, shift)."""

    def __init__(
        self, subject: Subject, layers: Mapping[str, LayerSpec], exact: Mapping[str, tuple[Moments, int]]
    ) -> None:
        self._layers, self._exact = layers, exact
        self._has_bias = {name: bias_key(subject.model, layer) is not None for name, layer in layers.items()}
        # Module hooks show an output once, ops as often as in FP32's pass: see `build_tuned`.
        by_ops = bool(subject.numbers.functional) or any(n.kind == "matmul" for n in subject.workload.layers)
        self._left = {name: times if by_ops else 1 for name, (_, times) in exact.items()}
        self.asked: dict[str, tuple[Tensor, Tensor]] = {}

    def behind(self, name: str, result: Result | None) -> Result:
        def corrected(y: Tensor, x: Tensor) -> Tensor:
            y = y if result is None else result(y, x)
            self._left[name] -= 1
            if self._left[name]:
                return y
            layer, wanted = self._layers[name], self._exact[name][0]
            gain, shift = _gain_and_shift(wanted, _moments(layer, y), has_bias=self._has_bias[name])
            self.asked[name] = gain, shift
            shape = [1] * y.dim()
            shape[channel_axis(layer.kind, y.dim())] = -1
            return y * gain.reshape(shape) + shift.reshape(shape)

        return corrected


def _gain_and_shift(wanted: Moments, got: Moments, *, has_bias: bool) -> tuple[Tensor, Tensor]:
    floor = CONSTANT * torch.maximum(wanted.mean.abs(), wanted.deviation.amax())
    varies = (wanted.deviation > floor) & (got.deviation > floor) & torch.isfinite(got.deviation)
    ratio = wanted.deviation / torch.where(varies, got.deviation, 1.0)
    gain = torch.where(varies, ratio, 1.0).clamp(1 / MOST_GAIN, MOST_GAIN)
    shift = (wanted.mean - gain * got.mean).nan_to_num(0.0, 0.0, 0.0)
    return gain, shift if has_bias else torch.zeros_like(shift)


def _moments(layer: LayerSpec, y: Tensor) -> Moments:
    others = [a for a in range(y.dim()) if a != channel_axis(layer.kind, y.dim())]
    y = y.detach().float()
    mean = y.mean(others)
    return Moments(mean, (y.square().mean(others) - mean.square()).clamp(min=0).sqrt())
