"""Writes a config for NVIDIA Model Optimizer: the ordered quantizer list, all numbers, and Python that loads them."""

from __future__ import annotations

import fnmatch
import glob
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from haq.errors import InputError
from haq.export.loading import compute_in, dequantized, load_numbers
from haq.export.modelopt_loading import quantize_with_modelopt
from haq.export.report import ExportReport, LayerWritten
from haq.export.swapping import as_float, dtype_of, hidden, placed, source, state_of, with_float_layers
from haq.nn.calibrate import Operand
from haq.nn.exportable import Exportable
from haq.nn.quantizers import ActivationQuantizer, largest_code
from haq.nn.tensorfile import write_tensors
from haq.nn.tuned import Tuned
from haq.precision import Assignment, Format, Precision
from haq.textfile import write_file
from haq.workload import LayerSpec

SWAPPED: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""The classes for which Model Optimizer 0.47 has a quantized twin with a weight."""

OFF: Mapping[str, Any] = {"quantizer_name": "*", "enable": False}
"""The first rule: whatever no later rule names stays in float."""

NUMBERS = "haq.modelopt/v1"
LOAD = '''

def quantize(model: nn.Module) -> nn.Module:
    """`model` (FP32, eval mode, batch norm folded), changed in place: haq's numbers, Model Optimizer's quantizers."""
    return quantize_with_modelopt(model, CONFIG, LAYERS, load_file(Path(__file__).with_name(NUMBERS)))
'''


def export(what: Exportable, out: Path, options: Mapping[str, str]) -> ExportReport:
    """Write OUT.json (the list that `mtq.quantize` takes), OUT.safetensors and OUT.py; nothing of NVIDIA is needed.

    Activation ranges become symmetric, as TensorRT has them; the report says what that costs each layer.
    Raises InputError on a path that cannot be written and on a rule that does not name exactly one quantizer.
    """
    table, script, numbers = placed(out, (".json", ".py", ".safetensors"))
    lines = {layer.name: _line(layer, what) for layer in what.workload.layers}
    written = {name: line.written for name, line in lines.items() if line.written is not None}
    runs, tuned = as_modelopt(what, written)
    found = rules(what, written, tuned)
    check_rules(found, quantizer_names(what.model))
    config = {"quant_cfg": found, "algorithm": "max"}
    write_tensors(numbers, state_of(what.model, what.workload, runs, tuned), {"schema": NUMBERS})
    write_file(table, json.dumps(config, indent=1) + "\n", "rule list")
    data = {"CONFIG": config, "LAYERS": _layers(what, written), "NUMBERS": numbers.name}
    functions = (dequantized, load_numbers, compute_in, quantize_with_modelopt)
    about = f"{what.workload.name} for NVIDIA Model Optimizer: `quantize(model)` gives it haq's numbers and quantizers."
    write_file(script, source(about, "import fnmatch", data, functions) + LOAD, "loader")
    notes = [
        "weights and ranges are exact only with the numbers, which the Python file loads; int4 is not packed there"
    ]
    if any("block_sizes" in rule.get("cfg", {}) for rule in found):
        notes.append(
            "JSON has text for the keys of block_sizes where Model Optimizer wants integers: load the Python file"
        )
    return ExportReport("modelopt", (table, script, numbers), tuple(lines.values()), tuple(notes))


def as_modelopt(what: Exportable, written: Mapping[str, Precision]) -> tuple[Assignment, Tuned]:
    """(what runs, its numbers) in the artifact: symmetric activation ranges, FP32 where a layer cannot be said."""
    runs, tuned = with_float_layers(what.numbers, what.model, what.workload, written)
    return runs, replace(tuned, quantizers=symmetric(tuned.quantizers))


def symmetric(quantizers: Mapping[Operand, ActivationQuantizer]) -> dict[Operand, ActivationQuantizer]:
    """The quantizers with zero-point in the middle and a step that covers the larger side of the range.

    A module has one input quantizer, so all calls of it (`name`, `name@1`) take the widest of their ranges.
    """
    widest: dict[str, float] = {}
    for (layer, _), quantizer in quantizers.items():
        module = layer.split("@")[0]
        widest[module] = max(widest.get(module, 0.0), largest_magnitude(quantizer))
    return {
        operand: ActivationQuantizer(
            q.format, as_float(widest[operand[0].split("@")[0]] / q.format.largest), int(q.format.largest) + 1
        )
        for operand, q in quantizers.items()
    }


def largest_magnitude(quantizer: ActivationQuantizer) -> float:
    """The larger end of a quantizer's range, without its sign."""
    return max(quantizer.zero_point, largest_code(quantizer.format) - quantizer.zero_point) * quantizer.scale


def rules(what: Exportable, written: Mapping[str, Precision], tuned: Tuned) -> list[dict[str, Any]]:
    """The ordered `quant_cfg`: everything off, then one rule per quantizer, by its full name. tuned: symmetric."""
    found = [dict(OFF)]
    for layer in what.workload.layers:
        if layer.name not in written or layer.name != layer.module:
            continue  # a module's second call has the quantizers of its first
        assert layer.weight is not None
        precision, module = written[layer.name], glob.escape(layer.module)
        if precision.weight.is_integer:
            cfg = weight_cfg(precision.weight, layer.weight.channel_axis)
            found.append({"quantizer_name": f"{module}.weight_quantizer", "cfg": cfg})
        if precision.activation.is_integer and layer.kind != "embedding":
            cfg = input_cfg(precision.activation, tuned.quantizers.get((layer.name, 0)))
            found.append({"quantizer_name": f"{module}.input_quantizer", "cfg": cfg})
    return found


def weight_cfg(fmt: Format, channel_axis: int) -> dict[str, Any]:
    """One scale per output channel, or per block of the last axis; it is calibrated, then overwritten with haq's."""
    if fmt.group is not None:
        return {"num_bits": fmt.bits, "block_sizes": {-1: fmt.group}}
    return {"num_bits": fmt.bits, "axis": channel_axis}


def input_cfg(fmt: Format, quantizer: ActivationQuantizer | None) -> dict[str, Any]:
    """One fixed range, or one per row that is found as the network runs."""
    if fmt.per_token:
        return {"num_bits": fmt.bits, "type": "dynamic", "block_sizes": {-1: None}}
    assert quantizer is not None, "a static activation has a range"
    return {"num_bits": fmt.bits, "axis": None, "constant_amax": as_float(quantizer.scale * fmt.largest)}


def quantizer_names(model: nn.Module) -> tuple[str, ...]:
    """The quantizers that Model Optimizer will put into a model."""
    modules = [name for name, module in model.named_modules() if isinstance(module, SWAPPED)]
    return tuple(f"{name}.{kind}_quantizer" for name in modules for kind in ("input", "weight", "output"))


def check_rules(quant_cfg: list[dict[str, Any]], names: Iterable[str]) -> None:
    """Raise InputError unless the first rule turns everything off and each other one names exactly one quantizer."""
    known = tuple(names)
    if not quant_cfg or quant_cfg[0] != OFF:
        raise InputError("the first rule must turn every quantizer off", got=quant_cfg[:1], expected=str(dict(OFF)))
    for rule in quant_cfg[1:]:
        found = [name for name in known if fnmatch.fnmatchcase(name, rule["quantizer_name"])]
        if len(found) != 1:
            raise InputError(
                "a rule does not match exactly one quantizer",
                where=rule["quantizer_name"],
                got=", ".join(found[:3]) or "none",
                expected="one",
            )


def _line(layer: LayerSpec, what: Exportable) -> LayerWritten:
    """What becomes of one layer."""
    asked = what.executed.precision(layer.name)
    if reason := hidden(layer, what.model, what.numbers.functional, SWAPPED):
        return LayerWritten(layer.name, asked, None, reason)
    if asked.weight.group is not None and layer.kind not in ("linear", "embedding"):
        reason = "groups run through a convolution's inputs and window, blocks along one axis only; it stays FP32"
        return LayerWritten(layer.name, asked, None, reason)
    notes = []
    if (quantizer := what.numbers.quantizers.get((layer.name, 0))) is not None:
        notes.append(_range_note(quantizer))
    if (dtype := dtype_of(asked)) != "float32":
        notes.append(f"no quantizer of its activations: the loader keeps the module in {dtype}")
    if asked.weight.bits == 4 and layer.kind.startswith("conv"):
        notes.append("TensorRT has no int4 convolution: fake-quantized only")
    return LayerWritten(layer.name, asked, asked, "; ".join(notes))


def _range_note(quantizer: ActivationQuantizer) -> str:
    """What a symmetric range changes for a layer's input."""
    levels, zero = largest_code(quantizer.format), quantizer.zero_point
    low, high = -zero * quantizer.scale, (levels - zero) * quantizer.scale
    amax = largest_magnitude(quantizer)
    step = amax / quantizer.format.largest / quantizer.scale
    return f"input {low:.4g} ... {high:.4g} becomes +-{amax:.4g}: steps {step:.2f} times as wide"


def _layers(what: Exportable, written: Mapping[str, Precision]) -> dict[str, dict[str, Any]]:
    """Module name -> what the loader must know of it, for layers that it changes."""
    return {
        layer.module: {
            "largest": int(written[layer.name].weight.largest) if written[layer.name].weight.is_integer else 0,
            "dtype": dtype_of(written[layer.name]),
        }
        for layer in what.workload.layers
        if layer.name in written and layer.name == layer.module
    }
