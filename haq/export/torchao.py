"""Writes a config for torchao: an FqnToConfig of Linear and Embedding layers, all numbers, a file that loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from haq.errors import MissingExtra
from haq.export.loading import compute_in, dequantized, load_numbers
from haq.export.report import ExportReport, LayerWritten
from haq.export.swapping import dtype_of, hidden, placed, source, state_of, with_float_layers
from haq.export.torchao_loading import quantize_with_torchao
from haq.nn.exportable import Exportable
from haq.nn.tensorfile import write_tensors
from haq.nn.tuned import Tuned
from haq.precision import FORMATS, Assignment, Precision
from haq.textfile import write_file
from haq.workload import LayerSpec

SWAPPED: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding)
NUMBERS = "haq.torchao/v1"
LOAD = '''

def quantize(model: nn.Module) -> nn.Module:
    """`model` (FP32, eval mode, batch norm folded), changed in place: quantized by torchao with haq's numbers."""
    return quantize_with_torchao(model, CONFIG, DTYPES, load_file(Path(__file__).with_name(NUMBERS)))
'''


@dataclass(frozen=True)
class Entry:
    """One layer's config. name: of torchao's class. bits, group: of an IntxWeight; group 0 is one scale per row."""

    name: str
    bits: int = 8
    group: int = 0


def export(what: Exportable, out: Path, options: Mapping[str, str]) -> ExportReport:
    """Write OUT.json (`config_from_dict` reads it), OUT.safetensors and OUT.py; convolutions stay FP32.

    Raises InputError on a path that cannot be written, MissingExtra without torchao.
    """
    table, script, numbers = placed(out, (".json", ".py", ".safetensors"))
    lines = {layer.name: _line(layer, what) for layer in what.workload.layers}
    written = {name: line.written for name, line in lines.items() if line.written is not None}
    runs, tuned = as_torchao(what, written)
    chosen = entries(what.workload.layers, written)
    config = config_json(chosen)
    write_tensors(numbers, state_of(what.model, what.workload, runs, tuned), {"schema": NUMBERS})
    write_file(table, json.dumps(config, indent=1) + "\n", "torchao config")
    narrow = {name: dtype_of(p) for name, p in written.items() if "@" not in name and dtype_of(p) != "float32"}
    data = {"CONFIG": config, "DTYPES": narrow, "NUMBERS": numbers.name}
    functions = (dequantized, load_numbers, compute_in, quantize_with_torchao)
    about = f"{what.workload.name} for torchao: `quantize(model)` quantizes it and gives it haq's numbers."
    write_file(script, source(about, "", data, functions) + LOAD, "loader")
    notes = ("torchao alone, from the JSON, finds scales of its own (largest magnitude); the Python file sets haq's",)
    return ExportReport("torchao", (table, script, numbers), tuple(lines.values()), notes)


@dataclass(frozen=True)
class TokenQuantizer:
    """Rounds every row of the last axis to 8-bit codes with a scale of its own, as torchao's kernels do.

    Symmetric, a row's largest magnitude falls on code 127.5 (haq's `int8t` has it on 127); asymmetric, its least and
    largest number, widened to hold 0, fall on -128 and 127 (`choose_qparams_affine`).
    """

    asymmetric: bool

    def __call__(self, x: Tensor) -> Tensor:
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        if not self.asymmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
        zero = (-128 - torch.round(low / scale)).clamp(-128, 127) if self.asymmetric else torch.zeros_like(scale)
        return (torch.round(x * (1 / scale)).add_(zero).clamp_(-128, 127) - zero) * scale


def as_torchao(what: Exportable, written: Mapping[str, Precision]) -> tuple[Assignment, Tuned]:
    """(what runs, its numbers) in the artifact: activations per token, FP32 where a layer cannot be said."""
    runs, tuned = with_float_layers(what.numbers, what.model, what.workload, written)
    tokens = {
        (layer.name, 0): TokenQuantizer(asymmetric=runs.precision(layer.name).weight.bits == 4)
        for layer in what.workload.layers
        if layer.name in written and layer.kind == "linear" and runs.precision(layer.name).activation.is_integer
    }
    return runs, replace(tuned, quantizers=cast("Any", tokens))  # called as the static ones are


def entries(layers: tuple[LayerSpec, ...], written: Mapping[str, Precision]) -> dict[str, Entry]:
    """Module name -> its config, in the workload's order; layers with float weights have none."""
    return {
        layer.module: entry(layer.kind, written[layer.name])
        for layer in layers
        if layer.name in written and layer.name == layer.module and written[layer.name].weight.is_integer
    }


def entry(kind: str, precision: Precision) -> Entry:
    """The config that computes this precision; `int8t` is torchao's only integer activation that JSON can hold."""
    weight, bits = precision.weight, precision.weight.bits
    integer = precision.activation.is_integer and kind != "embedding"
    if bits == 8 and kind == "linear":
        return Entry("Int8DynamicActivationInt8WeightConfig" if integer else "Int8WeightOnlyConfig")
    name = "Int8DynamicActivationIntxWeightConfig" if integer else "IntxWeightOnlyConfig"
    return Entry(name, bits, weight.group or 0)


def config_json(chosen: Mapping[str, Entry]) -> dict[str, Any]:
    """The FqnToConfig as torchao writes it itself; raises MissingExtra without torchao."""
    try:
        import torchao.quantization as ao
        from torchao.core.config import config_to_dict
    except ModuleNotFoundError:
        raise MissingExtra("torchao", "torchao") from None

    def config(entry: Entry) -> Any:
        if not entry.name.endswith("IntxWeightConfig") and not entry.name.startswith("IntxWeight"):
            return getattr(ao, entry.name)()
        axis = "weight_granularity" if entry.name.startswith("Int8Dynamic") else "granularity"
        granularity = ao.PerGroup(entry.group) if entry.group else ao.PerAxis(0)
        return getattr(ao, entry.name)(**{"weight_dtype": getattr(torch, f"int{entry.bits}"), axis: granularity})

    found: dict[str, Any] = config_to_dict(ao.FqnToConfig({name: config(entry) for name, entry in chosen.items()}))
    return found


def _line(layer: LayerSpec, what: Exportable) -> LayerWritten:
    """What becomes of one layer."""
    asked = what.executed.precision(layer.name)
    weight, activation = asked.weight, asked.activation
    if layer.kind.startswith("conv"):
        return LayerWritten(layer.name, asked, None, "torchao runs no quantized convolution, it stays FP32")
    if reason := hidden(layer, what.model, what.numbers.functional, SWAPPED):
        return LayerWritten(layer.name, asked, None, reason)
    assert layer.weight is not None
    if weight.group is not None and layer.weight.depth % weight.group:
        reason = f"{layer.weight.depth} inputs are no whole number of groups, it stays FP32"
        return LayerWritten(layer.name, asked, None, reason)
    integer_product = activation.is_integer and layer.kind != "embedding"
    if (weight.is_integer and weight.bits > 8) or (
        integer_product and not (weight.is_integer and activation.bits == 8)
    ):
        return LayerWritten(layer.name, asked, None, f"no config for {asked}, it stays FP32")
    if not integer_product:
        note = "" if dtype_of(asked) == "float32" else f"the loader keeps the module in {dtype_of(asked)}"
        return LayerWritten(layer.name, asked, asked, note)
    dynamic = Precision(weight, FORMATS["int8t"])
    notes = [] if activation.per_token else ["the static range becomes one per token, found as it runs"]
    notes += ["codes of activations are asymmetric"] if weight.bits == 4 else []
    return LayerWritten(layer.name, asked, dynamic, "; ".join(notes))
