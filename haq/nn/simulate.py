"""Build the model that computes what a target would compute under an executed assignment of precisions."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import Calibration
from haq.nn.instrument import instrument, shared_copy
from haq.nn.observers import WEIGHT_OBSERVERS
from haq.nn.quantizers import QuantizedWeight, cast, check_finite, executed_weight, quantize_weight
from haq.precision import FORMATS, Assignment, Format, Precision
from haq.workload import LayerSpec, Workload

FP32 = Precision(FORMATS["fp32"], FORMATS["fp32"])


def apply(model: nn.Module, workload: Workload, executed: Assignment, calibration: Calibration) -> nn.Module:
    """A new model that computes in the executed precisions and shares no tensor with `model`, which stays as it is.

    model: folded FP32, in eval mode. workload: its trace. executed: a Precision for every layer. Integer activations
    are rounded where a layer reads them, sums are fp32; a float activation format rounds operands, bias and output, so
    that fp16 overflows as it does on the device; fp32/fp32 layers are untouched. Raises InputError on an assignment
    that does not fit the workload and on layers that cannot be simulated.
    """
    return copy.deepcopy(Simulator(model, workload, calibration).build(executed))


class Simulator:
    """Builds candidates of one model in milliseconds.

    Changes as it is used: it keeps each quantized weight, so that a candidate is a copy of the module tree with
    references swapped. Memory beyond the model: an fp32 copy of each weight per distinct (weight format, arithmetic)
    that was asked for, and an int8 copy per integer format; with int4/int8 and int8/int8, 2.5 times the FP32 weights.
    Candidates share tensors with the model and each other: read them, never train them (that is what `apply` is for).
    """

    def __init__(self, model: nn.Module, workload: Workload, calibration: Calibration) -> None:
        self._model, self._workload, self._calibration = model, workload, calibration
        self._stored: dict[tuple[str, Format], QuantizedWeight] = {}
        self._parameters: dict[tuple[str, Format, Format], nn.Parameter] = {}

    def build(self, executed: Assignment) -> nn.Module:
        """A model in the executed precisions; raises InputError if the assignment does not fit the workload."""
        precisions = _check(executed, self._workload)
        model = shared_copy(self._model)
        modules = dict(model.named_modules())
        for layer in self._workload.layers:
            if layer.weight is not None and precisions[layer.name] != FP32:
                owner, weight, bias = _parameters(modules, layer)
                owner._parameters[weight] = self._weight(owner, weight, layer, precisions[layer.name])
                if owner._parameters.get(bias) is not None:
                    owner._parameters[bias] = self._bias(owner, bias, layer, precisions[layer.name])
        changed = frozenset(n for n, p in precisions.items() if p.activation.name != "fp32")
        instrument(model, self._workload, _Rounding(precisions, self._calibration), changed)
        return model

    def stored_weight(self, layer: LayerSpec, fmt: Format) -> QuantizedWeight:
        """The codes and scales of a layer's weight in an integer format."""
        assert layer.weight is not None
        key = layer.weight.key, fmt
        if key not in self._stored:
            owner, name, _ = _parameters(dict(self._model.named_modules()), layer)
            weight = owner._parameters[name]
            assert weight is not None
            with torch.inference_mode(False), torch.no_grad():
                check_finite(weight, key[0])
                ranges = WEIGHT_OBSERVERS[self._calibration.weight_observer](weight, layer.weight.channel_axis, fmt)
                self._stored[key] = quantize_weight(weight, ranges, layer.weight.channel_axis, fmt)
        return self._stored[key]

    def _weight(self, owner: nn.Module, name: str, layer: LayerSpec, precision: Precision) -> nn.Parameter:
        assert layer.weight is not None
        key = layer.weight.key, precision.weight, _arithmetic(precision)
        if key not in self._parameters:
            original = owner._parameters[name]
            assert original is not None
            with torch.inference_mode(False), torch.no_grad():
                stored = self.stored_weight(layer, precision.weight) if precision.weight.is_integer else original
                self._parameters[key] = nn.Parameter(executed_weight(stored, precision), requires_grad=False)
        return self._parameters[key]

    def _bias(self, owner: nn.Module, name: str, layer: LayerSpec, precision: Precision) -> nn.Parameter:
        """Integer arithmetic adds the bias to a wide sum; float arithmetic holds it in its own format."""
        original = owner._parameters[name]
        assert original is not None
        key = f"{layer.module} bias", _arithmetic(precision), _arithmetic(precision)
        if key not in self._parameters:
            with torch.inference_mode(False), torch.no_grad():
                self._parameters[key] = nn.Parameter(cast(original, _arithmetic(precision)), requires_grad=False)
        return self._parameters[key]


class _Rounding:
    """The probe that rounds operands and outputs as the executed precisions say."""

    def __init__(self, precisions: Mapping[str, Precision], calibration: Calibration) -> None:
        self._precisions, self._calibration = precisions, calibration

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        fmt = self._precisions[layer].activation
        return self._calibration.quantizer(layer, index, fmt)(x) if fmt.is_integer else cast(x, fmt)

    def output(self, layer: str, y: Tensor) -> Tensor:
        fmt = self._precisions[layer].activation
        return y if fmt.is_integer else cast(y, fmt)


def _arithmetic(precision: Precision) -> Format:
    """What sums and biases are held in: fp32 beside integer products, else the activation format."""
    return FP32.compute if precision.compute.is_integer else precision.compute


def _parameters(modules: Mapping[str, nn.Module], layer: LayerSpec) -> tuple[nn.Module, str, str]:
    """The module that holds a layer's weight, and the attribute names of weight and bias."""
    assert layer.weight is not None
    path, _, name = layer.weight.key.rpartition(".")
    owner = modules.get(layer.module)
    if owner is None or owner._parameters.get("weight") is None:
        owner = modules.get(path)
    else:
        name = "weight"
    if owner is None or owner._parameters.get(name) is None:
        raise InputError(
            "the layer's weight is not a plain parameter",
            where=layer.name,
            got=layer.weight.key,
            expected="a parameter of a module",
            way_out="remove weight normalization and other parametrizations first",
        )
    return owner, name, name.replace("weight", "bias")


def _check(executed: Assignment, workload: Workload) -> dict[str, Precision]:
    """The assignment as Precisions in the workload's order; raises InputError where it does not fit."""
    known = set(workload.layer_names)
    missing, unknown = [n for n in workload.layer_names if n not in executed], [n for n in executed if n not in known]
    if missing or unknown:
        raise InputError(
            "the assignment leaves layers out" if missing else "the assignment names layers that the model has not",
            where=workload.name,
            got=", ".join((missing or unknown)[:5]),
            expected=f"one precision for each of the {len(known)} layers",
        )
    precisions = {name: executed.precision(name) for name in workload.layer_names}
    first: dict[str, Precision] = {}
    for layer in workload.layers:
        if precisions[layer.name] != first.setdefault(layer.module, precisions[layer.name]):
            raise InputError(
                "a module that runs more than once has one weight and takes one precision",
                where=layer.name,
                got=str(precisions[layer.name]),
                expected=f"{first[layer.module]} as in its first call",
                way_out="put its calls into one group",
            )
    return precisions
