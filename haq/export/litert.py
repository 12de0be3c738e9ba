"""Writes a config as a LiteRT model: converted by `litert-torch`, one rule of `litert-quantizer` for every op."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from haq.errors import InputError, MissingExtra
from haq.export.litert_plan import LayerPlan, plan_layer
from haq.export.litert_quantize import quantized
from haq.export.litert_run import quiet
from haq.export.litert_sites import Site, find_sites
from haq.export.report import ExportReport, LayerWritten
from haq.export.tflite import CONFIG_KEY, LAYERS_KEY, Tflite
from haq.nn.exportable import Exportable
from haq.nn.quantizers import QuantizedWeight, cast
from haq.nn.task import Inputs
from haq.nn.tuned import bias_key, joined
from haq.precision import FORMATS, Precision
from haq.textfile import write_file
from haq.workload import LayerSpec

FLOAT_NOTE = "ops between layers (additions, pooling, activations that are not fused) compute in fp32"


def export(what: Exportable, where: Path, options: Mapping[str, str]) -> ExportReport:
    """Write the config at `where`, a `.tflite` of batch 1; returns what became of every layer.

    options: `flavour`, `static` (int8 inputs with the scales of calibration, as simulated) or `dynamic` (scales found
    in every inference). Codes and scales are haq's own. Raises MissingExtra without the extra `litert`, InputError on
    an unknown flavour, on a network that LiteRT does not take, and where a rule took no effect.
    """
    flavour = options.get("flavour", "static")
    plans = {
        layer.name: plan_layer(layer, what.executed.precision(layer.name), flavour) for layer in what.workload.layers
    }
    model, weights = with_numbers(what)
    plans = {name: _in_range(plan, weights.get(name)) for name, plan in plans.items()}
    file = Tflite(converted(model, what.example))
    found = find_sites(
        file, what.workload.layers, weights, {name for name, plan in plans.items() if plan.how != "float"}
    )
    named = _rename(file, found, {layer.name: layer for layer in what.workload.layers}, model)
    content, notes = quantized(file, [(site, plans[site.layer]) for site in found], what)
    done = Tflite(content)
    done.add_note(LAYERS_KEY, named)
    done.add_note(CONFIG_KEY, dict(what.config))
    content = done.to_bytes()
    check_written(Tflite(content), plans, named)
    write_file(where, content, "LiteRT model")
    layers = tuple(
        LayerWritten(
            layer.name,
            what.executed.precision(layer.name),
            plans[layer.name].written,
            "; ".join(filter(None, (plans[layer.name].note, notes.get(layer.name)))),
        )
        for layer in what.workload.layers
    )
    return ExportReport("litert", (where,), layers, (FLOAT_NOTE,))


def with_numbers(what: Exportable) -> tuple[nn.Module, dict[str, NDArray[np.float32]]]:
    """The FP32 network with the deployed numbers in it, and each layer's weight.

    An integer weight is code x scale, from which rounding to the scale recovers the code; float ones are rounded once.
    """
    model = copy.deepcopy(what.model)
    numbers, parts = what.numbers, {}
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in what.workload.layers:
        if layer.weight is None:
            continue
        stored, asked = numbers.weights[layer.weight.key], what.executed.precision(layer.name)
        value = stored.dequantize() if isinstance(stored, QuantizedWeight) else cast(stored, asked.weight)
        parts[layer.weight.key] = value
        weights[layer.name] = value.detach().numpy()
        if (key := bias_key(model, layer)) is not None:
            parts[key] = numbers.biases[key]
    with torch.no_grad():
        for key, value in joined(parts, model).items():
            model.get_parameter(key).copy_(value)
    return model.eval(), weights


def converted(model: nn.Module, example: Inputs) -> bytes:
    """The network as a float `.tflite`; raises InputError where `litert-torch` cannot convert it."""
    try:
        import litert_torch
    except ImportError as error:
        raise MissingExtra("litert-torch", "litert") from error
    args, kwargs = ((), example) if isinstance(example, dict) else (example, None)
    with quiet():
        try:
            edge = litert_torch.convert(model, args, sample_kwargs=kwargs)
            return bytes(edge.model_content())
        except Exception as error:
            raise InputError(
                "litert-torch does not convert the network", where=type(model).__name__,
                got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                expected="what torch.export takes", way_out="export to onnx",
            ) from error  # fmt: skip


def check_written(file: Tflite, plans: Mapping[str, LayerPlan], named: Mapping[str, str]) -> None:
    """Raise InputError naming a layer that does not stand in the file as planned: its rule took no effect."""
    weights = file.weights
    for layer in named:
        precision = file.precision(weights[layer]) if layer in weights else None
        if precision != plans[layer].written:
            raise InputError(
                "the rule for the layer took no effect", where=layer, got=str(precision),
                expected=str(plans[layer].written), way_out="report it with the versions of litert-quantizer and torch",
            )  # fmt: skip


def _in_range(plan: LayerPlan, weight: NDArray[np.float32] | None) -> LayerPlan:
    """fp32 instead of fp16 for a weight that fp16 cannot hold, as bf16 can."""
    if plan.how != "cast" or weight is None or float(np.abs(weight).max()) <= FORMATS["fp16"].largest:
        return plan
    return LayerPlan("float", Precision.parse("fp32/fp32"), "a weight exceeds 65504, the largest number of fp16: fp32")


def _rename(file: Tflite, sites: Iterable[Site], layers: Mapping[str, LayerSpec], model: nn.Module) -> dict[str, str]:
    """Give weights and biases their names in torch; returns layer -> name of its weight."""
    named: dict[str, str] = {}
    taken: dict[int, str] = {}
    for site in sites:
        layer = layers[site.layer]
        assert layer.weight is not None
        if site.weight not in taken:
            same = sum(name.split("@")[0] == layer.weight.key for name in taken.values())
            taken[site.weight] = layer.weight.key + (f"@{same}" if same else "")
            file.rename(site.weight, taken[site.weight])
        named[site.layer] = taken[site.weight]
        bias = site.op.inputs[2] if len(site.op.inputs) > 2 else -1
        if bias >= 0 and len(file.readers(bias)) == 1 and (key := bias_key(model, layer)) is not None:
            file.rename(bias, key)
    return named
