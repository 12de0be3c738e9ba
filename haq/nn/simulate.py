"""Build the model that computes what a target would compute under an executed assignment of precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import Calibration, Operand
from haq.nn.instrument import instrument_modules, instrument_ops
from haq.nn.ptq.layers import QuantizedLayers, Recipe, arithmetic
from haq.nn.ptq.per_token import round_per_token
from haq.nn.ptq.stored import StoredLayer
from haq.nn.quantizers import cast
from haq.nn.sharing import shared_copy
from haq.nn.sole_readers import clamps, sole_readers
from haq.precision import FP32, Assignment, Format, Precision
from haq.workload import LayerSpec, Workload


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

    Changes as it is used: it keeps every quantized layer (`QuantizedLayers`). A candidate is a copy of the module tree
    with references swapped. Candidates share tensors with the model and each other: read them, never train them (that
    is what `apply` is for).
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        calibration: Calibration,
        folder: Path | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        """Raises InputError if the calibration is of another model.

        folder: where quantized layers are kept; None for memory.
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
        self.model, self.workload, self.calibration = model, workload, calibration
        self._layers = QuantizedLayers(model, workload, Recipe(calibration.stack, calibration.batches, folder))
        self._in_place = sole_readers(workload) if in_place else frozenset()
        self._clamps = clamps(model, workload) if in_place else ()

    def build(self, executed: Assignment) -> nn.Module:
        """A model in the executed precisions; raises InputError if the assignment does not fit the workload."""
        functional = self.calibration.functional
        precisions = _check(executed, self.workload, functional)
        self._layers.prepare(precisions)
        model = shared_copy(self.model)
        modules = dict(model.named_modules())
        swapped = set()
        for layer in self.workload.layers:
            if layer.weight is not None and layer.name not in functional and precisions[layer.name] != FP32:
                self._swap(modules, layer, precisions[layer.name])
                swapped.add(layer.module)
        functional_parameters = _Functional(self.workload, self._layers, swapped)
        rounding = _Rounding(precisions, self.calibration, functional_parameters, self._in_place)
        changed = {n for n, p in precisions.items() if p != FP32}
        if not changed:
            return model
        if functional or any(layer.kind == "matmul" for layer in self.workload.layers):
            instrument_ops(model, self.workload, rounding, changed)
        else:
            reading = {n for n, p in precisions.items() if p.activation != FP32.activation}
            writing = {n for n, p in precisions.items() if arithmetic(p) != FP32.activation}
            instrument_modules(model, self.workload, rounding, reading, writing)
        for clamp in self._clamps:
            fmt = precisions[clamp.layer].activation
            is_static = fmt.is_integer and not fmt.per_token
            if is_static and clamp.is_part_of(self.calibration.quantizer(clamp.layer, 0, fmt)):
                model.set_submodule(clamp.module, nn.Identity())
        return model

    def stored(self, layer: LayerSpec, fmt: Format) -> StoredLayer:
        """The codes and scales of a layer's weight in an integer format, and what its bias gains."""
        return self._layers.stored(layer, fmt)

    def _swap(self, modules: Mapping[str, nn.Module], layer: LayerSpec, precision: Precision) -> None:
        assert layer.weight is not None
        owner, name, bias_name = _parameters(modules, layer)
        if layer.name != layer.module:
            return  # the module's second call finds its parameters swapped
        owner._parameters[name] = self._layers.weight(layer, precision)
        bias = owner._parameters.get(bias_name)
        if bias is not None:
            owner._parameters[bias_name] = self._layers.bias(layer, bias, precision)


class _Functional:
    """The parameters of layers that no module owns. swapped: modules whose parameters are rounded already."""

    def __init__(self, workload: Workload, layers: QuantizedLayers, swapped: Collection[str]) -> None:
        self._specs = {layer.name: layer for layer in workload.layers}
        self._layers, self._swapped = layers, frozenset(swapped)

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None, precision: Precision) -> Tensor:
        """The weight (or, without a channel axis, the bias) that takes the place of `x`."""
        spec = self._specs[layer]
        if spec.module in self._swapped:
            return x
        if channel_axis is None:
            return self._layers.bias(spec, x, precision)
        return self._layers.functional(spec, x, channel_axis, precision)


class _Rounding:
    """The probe that rounds operands, outputs and the parameters of functional layers as the precisions say.

    in_place: layers whose integer operand may be written over.
    """

    def __init__(
        self,
        precisions: Mapping[str, Precision],
        calibration: Calibration,
        functional: _Functional,
        in_place: frozenset[str] = frozenset(),
    ) -> None:
        self._precisions, self._functional = precisions, functional
        self._arithmetic = {name: arithmetic(precision) for name, precision in precisions.items()}
        self._operands: dict[Operand, Callable[[Tensor], Tensor]] = {}
        for name, index in calibration.operands:
            fmt = precisions[name].activation
            if fmt.per_token:
                self._operands[name, index] = partial(round_per_token, fmt=fmt)
            elif fmt.is_integer:
                quantizer = calibration.quantizer(name, index, fmt)
                self._operands[name, index] = quantizer.in_place if name in in_place else quantizer

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        rounded = self._operands.get((layer, index))
        return cast(x, self._precisions[layer].activation) if rounded is None else rounded(x)

    def output(self, layer: str, y: Tensor) -> Tensor:
        return cast(y, self._arithmetic[layer])

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        return self._functional.parameter(layer, x, channel_axis, self._precisions[layer])


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
