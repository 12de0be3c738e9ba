"""Quantizes a float `.tflite` with one rule for every op, so that it holds haq's codes and scales."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError, MissingExtra
from haq.export.litert_plan import LayerPlan
from haq.export.litert_run import Runner, quiet, samples
from haq.export.litert_sites import Range, Site, input_ranges
from haq.export.tflite import Op, Tflite
from haq.nn.exportable import Exportable
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, largest_code
from haq.nn.task import Inputs

Rule = Mapping[str, Any]
"""An entry of a recipe as litert-quantizer reads it."""

SAMPLES = 128
"""Calibration samples that show the range of results which no static layer reads."""

_NAMES = ("litert_quantizer", "ai_edge_quantizer")
"""The maintained package, and its name until version 0.10."""


def quantized(
    file: Tflite, planned: Sequence[tuple[Site, LayerPlan]], what: Exportable
) -> tuple[bytes, dict[str, str]]:
    """The quantized file, and what is to be said of single layers.

    Weights and inputs have haq's scales. The result of a static layer takes the scale with which the next static layer
    reads it, or one that covers what calibration data gives. Raises InputError on a rule that matches no op.
    """
    ranges = {site.layer: _input_range(what, site.layer) for site, plan in planned if plan.how == "static"}
    static = [site for site, plan in planned if plan.how == "static"]
    inputs = input_ranges(file, static, ranges)
    rules = [rule for site, plan in planned for rule in layer_rules(file, site, plan)]
    rules += [_rule(file, op, "min_max_uniform_quantize", _static(8)) for op in inputs.moving]
    if not rules:
        return file.to_bytes(), {}
    check_rules(file, rules)
    unread = [site.op.outputs[0] for site in static if site.op.outputs[0] not in inputs.of]
    seen = {**inputs.of, **(observed(file, unread, _calibration(what)) if unread else {})}
    values = {file.name(tensor): _min_max(*found) for tensor, found in seen.items()}
    for site, plan in planned:
        if (known := _weight_range(what, site, plan)) is not None:
            values[file.name(site.weight)] = _min_max(-known, known)
    return _run(file.to_bytes(), rules, values), _notes(
        inputs.shared, [s.layer for s in static if s.op.outputs[0] in unread]
    )


def _notes(shared: Iterable[str], rounded: Iterable[str]) -> dict[str, str]:
    said = dict.fromkeys(rounded, "the result is rounded to int8 too; the simulation keeps it fp32")
    for layer in shared:
        first = f"{said[layer]}; " if layer in said else ""
        said[layer] = f"{first}reads a tensor that another layer reads with other scales, and takes those"
    return said


def layer_rules(file: Tflite, site: Site, plan: LayerPlan) -> list[Rule]:
    """The rule for one layer's op; none for a layer that stays float."""
    bits = plan.written.weight.bits
    if plan.how == "float":
        return []
    if plan.how == "cast":
        weight = {"num_bits": 16, "dtype": "FLOAT"}
        config = {"weight_tensor_config": weight, "compute_precision": "FLOAT", "explicit_dequantize": True}
        return [_rule(file, site.op, "float_casting", config)]
    if plan.how == "static":
        return [_rule(file, site.op, "min_max_uniform_quantize", _static(bits))]
    integer = plan.how == "dynamic"
    config = {
        "weight_tensor_config": _weight(bits),
        "compute_precision": "INTEGER" if integer else "FLOAT",
        "explicit_dequantize": not integer,
    }
    return [_rule(file, site.op, "min_max_uniform_quantize", config)]


def check_rules(file: Tflite, rules: Iterable[Rule]) -> None:
    """Raise InputError on a rule that does not match exactly one op: the library ignores one without a match."""
    for rule in rules:
        # The scope of an op is the names of its outputs, each followed by a semicolon.
        scopes = [";".join(map(file.name, op.outputs)) + ";" for op in file.ops if op.kind == rule["operation"]]
        matches = sum(re.search(rule["regex"], scope) is not None for scope in scopes)
        if matches != 1:
            raise InputError(
                f"a rule of the recipe matches {matches} ops", where=rule["operation"], got=rule["regex"],
                expected="exactly one op",
            )  # fmt: skip


def observed(file: Tflite, tensors: Sequence[int], batches: Iterable[Inputs]) -> dict[int, Range]:
    """The least and the largest number of each tensor over SAMPLES samples, in the float network."""
    runner = Runner(file.to_bytes(), keep_all=True)
    found: dict[int, Range] = {}
    one_by_one = itertools.chain.from_iterable(map(samples, batches))
    for sample in itertools.islice(one_by_one, SAMPLES):
        runner.feed(sample)
        runner.invoke()
        for tensor in tensors:
            values = runner.tensor(tensor)
            low, high = found.get(tensor, (0.0, 0.0))
            found[tensor] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def _run(content: bytes, rules: Sequence[Rule], values: Mapping[str, Any]) -> bytes:
    library = _library("quantizer")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        quantizer = library.Quantizer(bytearray(content))
        policy = Path(folder) / "policy.json"
        policy.write_text(_policy())
        quantizer.load_config_policy(str(policy))
        quantizer.load_quantization_recipe([dict(rule) for rule in rules])
        return bytes(quantizer.quantize(dict(values), enable_progress_report=False).quantized_model)


def _policy() -> str:
    """The library's table of what it offers, with int4 depthwise weights where the CPU kernels take them (run here)."""
    policy = json.loads(_library("default_policy").DEFAULT_JSON_POLICY)
    for name in ("static_wi4_ai8", "weightonly_wi4_afp32"):
        policy["ops_per_config"][name].append("DEPTHWISE_CONV_2D")
    return json.dumps(policy)


def _library(module: str) -> Any:
    for name in _NAMES:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(f"{name}.{module}")
    raise MissingExtra("litert-quantizer", "litert")


def _rule(file: Tflite, op: Op, algorithm: str, config: Mapping[str, Any]) -> Rule:
    scope = ";".join(map(file.name, op.outputs)) + ";"
    return {
        "regex": f"^{re.escape(scope)}$",
        "operation": op.kind,
        "algorithm_key": algorithm,
        "op_config": dict(config),
    }


def _static(bits: int) -> dict[str, Any]:
    """Int8 inputs and results with a zero-point, beside weights of some bits."""
    return {
        "activation_tensor_config": {
            "num_bits": 8, "symmetric": False, "granularity": "TENSORWISE", "dtype": "INT",
        },
        "weight_tensor_config": _weight(bits),
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    }  # fmt: skip


def _weight(bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}


def _input_range(what: Exportable, layer: str) -> Range:
    """The ends from which the library finds the quantizer's scale and zero-point again, in float64."""
    quantizer: ActivationQuantizer = what.numbers.quantizers[layer, 0]
    scale, zero = float(quantizer.scale), quantizer.zero_point
    return -scale * zero, scale * (largest_code(quantizer.format) - zero)


def _weight_range(what: Exportable, site: Site, plan: LayerPlan) -> NDArray[np.float64] | None:
    """The end of each channel from which the library finds haq's scale again; None where it chooses its own."""
    layer = next(layer for layer in what.workload.layers if layer.name == site.layer)
    assert layer.weight is not None
    stored = what.numbers.weights[layer.weight.key]
    if not isinstance(stored, QuantizedWeight) or stored.format != plan.written.weight:
        return None
    ends = stored.scales.numpy().astype(np.float64) * stored.format.largest
    shape = [1] * (2 if site.op.kind == "FULLY_CONNECTED" else 4)
    shape[site.channel_axis] = -1
    return ends.reshape(shape)


def _min_max(low: Any, high: Any) -> dict[str, Any]:
    return {"min": np.asarray(low, np.float64), "max": np.asarray(high, np.float64)}


def _calibration(what: Exportable) -> Iterable[Inputs]:
    if what.task is None:
        raise InputError(
            "no calibration data for the results of int8 layers", where="litert, flavour static",
            got="a model without data", expected="a task", way_out="give --data, or --flavour dynamic",
        )  # fmt: skip
    return what.task.calibration()
