"""Build the model that computes what a target would compute under an executed assignment of precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import Calibration, Operand
from haq.nn.instrument import instrument_modules, instrument_ops, shared_copy
from haq.nn.quantizers import QuantizedWeight, cast
from haq.nn.sole_readers import clamps, sole_readers
from haq.nn.weights import WeightCache, arithmetic
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

    Changes as it is used: it keeps every quantized weight (`WeightCache` says in how much memory; for int4/int8 and
    int8/int8 it is 2.5 times the FP32 weights). A candidate is a copy of the module tree with references swapped.
    Candidates share tensors with the model and each other: read them, never train them (that is what `apply` is for).
    """

    def __init__(
        self, model: nn.Module, workload: Workload, calibration: Calibration, *, in_place: bool = False
    ) -> None:
        """Raises InputError if the calibration is of another model.

        in_place: integer operands that nothing else in the traced network reads are rounded where they stand, and a
        ReLU before them is left out where the rounding cuts off as much. The numbers are the same in less time, but an
        activation that a hook of the caller's keeps may be rounded later on: leave it off to look into candidates.
        """
        seen = {layer for layer, _ in calibration.operands}
        missing = [layer.name for layer in workload.layers if layer.kind != "embedding" and layer.name not in seen]
        if missing:
            raise InputError(
                "the calibration is of another model",
                where=workload.name,
                got=f"no ranges for {', '.join(missing[:5])}",
                way_out="calibrate with this model and workload",
            )
        self._model, self._workload, self._calibration = model, workload, calibration
        self._weights = WeightCache(calibration.weight_observer)
        self._in_place = sole_readers(workload) if in_place else frozenset()
        self._clamps = clamps(model, workload) if in_place else ()

    def build(self, executed: Assignment) -> nn.Module:
        """A model in the executed precisions; raises InputError if the assignment does not fit the workload."""
        functional = self._calibration.functional
        precisions = _check(executed, self._workload, functional)
        model = shared_copy(self._model)
        modules = dict(model.named_modules())
        swapped = set()
        for layer in self._workload.layers:
            if layer.weight is not None and layer.name not in functional and precisions[layer.name] != FP32:
                self._swap(modules, layer, precisions[layer.name])
                swapped.add(layer.module)
        rounding = _Rounding(precisions, self._calibration, self._weights, frozenset(swapped), self._in_place)
        changed = {n for n, p in precisions.items() if p != FP32}
        if not changed:
            return model
        if functional or any(layer.kind == "matmul" for layer in self._workload.layers):
            instrument_ops(model, self._workload, rounding, changed)
        else:
            reading = {n for n, p in precisions.items() if p.activation != FP32.activation}
            writing = {n for n, p in precisions.items() if arithmetic(p) != FP32.activation}
            instrument_modules(model, self._workload, rounding, reading, writing)
        for clamp in self._clamps:
            fmt = precisions[clamp.layer].activation
            if fmt.is_integer and clamp.is_part_of(self._calibration.quantizer(clamp.layer, 0, fmt)):
                model.set_submodule(clamp.module, nn.Identity())
        return model

    def stored_weight(self, layer: LayerSpec, fmt: Format) -> QuantizedWeight:
        """The codes and scales of a layer's weight in an integer format."""
        assert layer.weight is not None
        owner, name, _ = _parameters(dict(self._model.named_modules()), layer)
        weight = owner.get_parameter(name)
        return self._weights.stored(layer.weight.key, weight, layer.weight.channel_axis, fmt)

    def _swap(self, modules: Mapping[str, nn.Module], layer: LayerSpec, precision: Precision) -> None:
        assert layer.weight is not None
        owner, name, bias_name = _parameters(modules, layer)
        # Once per module: at its second call the parameter is rounded already, and the cache answers by name.
        key, axis = layer.weight.key, layer.weight.channel_axis
        owner._parameters[name] = self._weights.executed(key, owner.get_parameter(name), axis, precision)
        bias = owner._parameters.get(bias_name)
        if bias is not None:
            owner._parameters[bias_name] = self._weights.bias(f"{layer.module}.{bias_name}", bias, precision)


class _Rounding:
    """The probe that rounds operands, outputs and the parameters of functional layers as the precisions say.

    swapped: modules whose parameters are rounded already. in_place: layers whose integer operand may be written over.
    """

    def __init__(
        self,
        precisions: Mapping[str, Precision],
        calibration: Calibration,
        weights: WeightCache,
        swapped: frozenset[str],
        in_place: frozenset[str] = frozenset(),
    ) -> None:
        self._precisions, self._weights, self._swapped = precisions, weights, swapped
        self._arithmetic = {name: arithmetic(precision) for name, precision in precisions.items()}
        self._operands: dict[Operand, Callable[[Tensor], Tensor]] = {}
        for name, index in calibration.operands:
            if precisions[name].activation.is_integer:
                quantizer = calibration.quantizer(name, index, precisions[name].activation)
                self._operands[name, index] = quantizer.in_place if name in in_place else quantizer

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        rounded = self._operands.get((layer, index))
        return cast(x, self._precisions[layer].activation) if rounded is None else rounded(x)

    def output(self, layer: str, y: Tensor) -> Tensor:
        return cast(y, self._arithmetic[layer])

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        if layer.split("@")[0] in self._swapped:
            return x
        if channel_axis is None:
            return cast(x, self._arithmetic[layer])
        return self._weights.executed(layer, x, channel_axis, self._precisions[layer])


def _parameters(modules: Mapping[str, nn.Module], layer: LayerSpec) -> tuple[nn.Module, str, str]:
    """The module that holds a layer's weight, and the attribute names of weight and bias."""
    assert layer.weight is not None
    path, _, name = layer.weight.key.rpartition(".")
    own = modules.get(layer.module)
    if own is not None and own._parameters.get("weight") is not None:
        return own, "weight", "bias"
    owner = modules.get(path)
    if owner is None or owner._parameters.get(name) is None:
        raise InputError(
            "the layer's weight is not a plain parameter",
            where=layer.name,
            got=layer.weight.key,
            expected="a parameter of a module",
            way_out="remove weight normalization and other parametrizations first",
        )
    return owner, name, name.replace("weight", "bias")


def _check(executed: Assignment, workload: Workload, functional: frozenset[str]) -> dict[str, Precision]:
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
        if layer.weight is None or layer.module in functional:
            continue
        if precisions[layer.name] != first.setdefault(layer.module, precisions[layer.name]):
            raise InputError(
                "a module that runs more than once has one weight and takes one precision",
                where=layer.name,
                got=str(precisions[layer.name]),
                expected=f"{first[layer.module]} as in its first call",
                way_out="put its calls into one group",
            )
    return precisions
