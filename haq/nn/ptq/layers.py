"""Quantizes each layer once per precision and keeps it, so that a candidate is put together from references."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.checkpoints import state_hash, weights_hash
from haq.nn.ptq.statistics import InputStatistics, input_statistics, measurable
from haq.nn.ptq.store import Store, Tensors
from haq.nn.ptq.stored import ROUNDED_BITS, LayerWeight, StoredLayer, stored_layer
from haq.nn.quantizers import QuantizedWeight, cast, executed_weight
from haq.nn.task import Inputs, hash_inputs
from haq.precision import FORMATS, Format, Precision
from haq.techniques import Stack
from haq.workload import LayerSpec, Workload

log = logging.getLogger(__name__)
VERSION = "2"
"""Part of every content hash: raise it when a technique's result changes."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How weights are quantized. batches: calibration data; folder: where results are kept, None for memory."""

    stack: Stack
    batches: tuple[Inputs, ...] = ()
    folder: Path | None = None


class QuantizedLayers:
    """The quantized weights of one model. It changes as it is used: it fills.

    What is stored (codes, scales, bias corrections) and what is executed (fp32 weights rounded so) are kept under a
    hash of everything they are made of. With a folder both are memory-mapped files: beside the FP32 model only the
    weights of the candidate that runs need to be in memory.
    """

    def __init__(self, model: nn.Module, workload: Workload, recipe: Recipe) -> None:
        self._model, self._workload, self._recipe = model, workload, recipe
        self._store = Store(recipe.folder)
        self._hashes: dict[str, str] = {}
        self._weights: dict[tuple[str, Format, Format], nn.Parameter] = {}
        self._layers = {layer.name: layer for layer in workload.layers}

    def prepare(self, precisions: Mapping[str, Precision]) -> None:
        """Quantize what is missing for these layers in these precisions, inputs of many layers measured at once."""
        missing: dict[tuple[str, Format], LayerSpec] = {}
        for name, precision in precisions.items():
            layer, fmt = self._layers[name], precision.weight
            if layer.weight is not None and fmt.is_integer and self._is_plain(layer) and not self._is_known(layer, fmt):
                missing[layer.weight.key, fmt] = layer
        wanted = {key: layer for (key, fmt), layer in missing.items() if self._needs_inputs(fmt)}
        statistics = self._measured(list(wanted.values()))
        for (key, fmt), layer in missing.items():
            self._quantize(layer, fmt, statistics.get(key) if self._needs_inputs(fmt) else None)
        self._store.trim()

    def stored(self, layer: LayerSpec, fmt: Format) -> StoredLayer:
        """Codes, scales and bias correction of a layer in an integer format; raises InputError on odd weights."""
        if not self._is_known(layer, fmt):
            self.prepare({layer.name: Precision(fmt, FORMATS["fp32"])})
        found = self._store.get(self._key(layer, fmt))
        assert found is not None
        assert layer.weight is not None
        return _stored(found, fmt, layer.weight.channel_axis)

    def weight(self, layer: LayerSpec, precision: Precision) -> nn.Parameter:
        """What the layer multiplies with, as `quantizers.executed_weight` defines it."""
        assert layer.weight is not None
        key = layer.weight.key, precision.weight, arithmetic(precision)
        if key not in self._weights:
            name = f"{self._key(layer, precision.weight)}-{arithmetic(precision)}"
            found = self._store.get(name)
            if found is None:
                source = (
                    self.stored(layer, precision.weight).weight
                    if precision.weight.is_integer
                    else weight_of(self._model, layer)
                )
                with torch.inference_mode(False), torch.no_grad():
                    found = self._store.put(name, {"weight": executed_weight(source, precision).clone()})
            self._weights[key] = nn.Parameter(found["weight"], requires_grad=False)
        return self._weights[key]

    def functional(self, layer: LayerSpec, weight: Tensor, channel_axis: int, precision: Precision) -> Tensor:
        """What a functional layer multiplies with, in the orientation of `weight`, which its op is about to read.

        A weight that is no plain part of a parameter (a batch of experts' matrices, say) is quantized as the op sees
        it, on its own.
        """
        assert layer.weight is not None
        if self._is_plain(layer):
            executed = self.weight(layer, precision)
            return executed if channel_axis == layer.weight.channel_axis else executed.transpose(0, 1)
        key = layer.name, precision.weight, arithmetic(precision)
        if key not in self._weights:
            with torch.inference_mode(False), torch.no_grad():
                source = weight.detach().clone()  # a normal tensor, also when the model runs in inference mode
                if precision.weight.is_integer:
                    seen = LayerWeight(layer.name, source, channel_axis)
                    stored = stored_layer(seen, precision.weight, self._recipe.stack, None).weight
                    made = executed_weight(stored, precision)
                else:
                    made = executed_weight(source, precision)
                self._weights[key] = nn.Parameter(made, requires_grad=False)
        return self._weights[key]

    def bias(self, layer: LayerSpec, bias: Tensor, precision: Precision) -> nn.Parameter:
        """Integer products add the corrected bias to their wide sum; float arithmetic holds it in its own format."""
        with torch.inference_mode(False), torch.no_grad():
            corrected = bias.detach().clone()
            if precision.weight.is_integer and self._is_plain(layer):
                shift = self.stored(layer, precision.weight).shift
                corrected = corrected if shift is None or shift.shape != corrected.shape else corrected + shift
            return nn.Parameter(cast(corrected, arithmetic(precision)), requires_grad=False)

    def _is_plain(self, layer: LayerSpec) -> bool:
        """Whether the layer's weight is a parameter, or rows of one, as it stands in the workload."""
        return layer.weight is not None and weight_of(self._model, layer).shape == layer.weight.shape

    def _is_known(self, layer: LayerSpec, fmt: Format) -> bool:
        return self._store.get(self._key(layer, fmt)) is not None

    def _quantize(self, layer: LayerSpec, fmt: Format, inputs: InputStatistics | None) -> None:
        assert layer.weight is not None
        groups = layer.groups if layer.kind in ("conv1d", "conv2d", "conv3d") else 1
        weight = LayerWeight(layer.weight.key, weight_of(self._model, layer), layer.weight.channel_axis, groups)
        with torch.inference_mode(False), torch.no_grad():
            made = stored_layer(weight, fmt, self._recipe.stack, inputs)
            tensors = {"codes": made.weight.codes, "scales": made.weight.scales}
            self._store.put(self._key(layer, fmt), tensors if made.shift is None else {**tensors, "shift": made.shift})

    def _measured(self, layers: Sequence[LayerSpec]) -> Mapping[str, InputStatistics]:
        if not layers or not self._recipe.batches:
            return {}
        log.info("measuring the inputs of %d layers", len(layers))
        return input_statistics(self._model, self._workload, self._recipe.batches, layers)

    def _needs_inputs(self, fmt: Format) -> bool:
        stack = self._recipe.stack
        rounds = stack.rounding is not None and fmt.bits <= ROUNDED_BITS
        return stack.ranges == "output_mse" or stack.output is not None or rounds

    def _key(self, layer: LayerSpec, fmt: Format) -> str:
        """The content hash of the layer in a format."""
        assert layer.weight is not None
        key = layer.weight.key
        if key not in self._hashes:
            self._hashes[key] = state_hash({"weight": weight_of(self._model, layer)})
        parts = [VERSION, self._hashes[key], str(layer.weight.channel_axis), layer.kind, str(layer.groups), fmt.name]
        if fmt.is_integer:
            stack = self._recipe.stack
            rounding = stack.rounding if fmt.bits <= ROUNDED_BITS else None
            parts += [stack.ranges, str(rounding), str(stack.output)]
            if self._needs_inputs(fmt) and measurable(layer):
                parts += [layer.name, self._context]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    @cached_property
    def _context(self) -> str:
        """Names what the inputs of layers depend on: the whole model and the calibration data."""
        return weights_hash(self._model) + hash_inputs(self._recipe.batches)


def arithmetic(precision: Precision) -> Format:
    """The format of sums and biases: fp32 beside integer products, else the activation format."""
    return FORMATS["fp32"] if precision.compute.is_integer else precision.compute


def weight_of(model: nn.Module, layer: LayerSpec) -> Tensor:
    """The layer's weight: a parameter, or the rows of one that its key names; raises InputError if there is none."""
    assert layer.weight is not None
    name, _, rows = layer.weight.key.partition("[")
    try:
        parameter = model.get_parameter(name).detach()
    except AttributeError:
        raise InputError(
            "the layer's weight is not a plain parameter", where=layer.name, got=layer.weight.key,
            expected="a parameter of a module",
            way_out="remove weight normalization and other parametrizations first",
        ) from None  # fmt: skip
    if rows:
        first, _, last = rows.removesuffix("]").partition(":")
        parameter = parameter[int(first) : int(last)]
    return parameter


def _stored(tensors: Tensors, fmt: Format, channel_axis: int) -> StoredLayer:
    return StoredLayer(QuantizedWeight(fmt, tensors["codes"], tensors["scales"], channel_axis), tensors.get("shift"))
