"""The numbers of a finetuned quantized model: frozen, built into a module, kept in a file beside its config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.configfile import executed_assignment, read_config
from haq.errors import InputError
from haq.nn.calibrate import Operand
from haq.nn.instrument import instrument_modules, instrument_ops
from haq.nn.lsq import Stored
from haq.nn.ptq.layers import arithmetic
from haq.nn.ptq.per_token import round_per_token
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, cast, executed_weight
from haq.nn.sharing import shared_copy
from haq.nn.smoothed import with_smoothing
from haq.nn.tensorfile import read_tensors, write_tensors
from haq.precision import Assignment, Precision
from haq.workload import LayerSpec, Workload

SCHEMA = "haq.tuned/v1"

Result = Callable[[Tensor, Tensor], Tensor]
"""(a layer's result, the rounded first operand that it read; of an embedding the result) -> what the next op sees."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """What is deployed: every number of the quantized layers.

    weights: state-dict key (with its rows, for a part of a packed parameter) -> codes and scales, or the float weight
    before its cast. biases: state-dict key -> (channels,) fp32. quantizers: operand -> its integer quantizer.
    functional: the layers whose op runs outside the module that owns the weight. smoothing: module -> what its input is
    multiplied by beyond the config's techniques, its weight divided: the numbers are of `with_smoothing(model, ...)`.
    """

    weights: Mapping[str, Stored]
    biases: Mapping[str, Tensor]
    quantizers: Mapping[Operand, ActivationQuantizer]
    functional: frozenset[str]
    smoothing: Mapping[str, Tensor] = field(default_factory=dict)


def load_tuned(config: Path, model: nn.Module, workload: Workload) -> nn.Module:
    """The finetuned quantized model of a config, ready to be measured.

    model: the FP32 model of that config, batch norm folded; it stays as it is. workload: its trace. Raises InputError
    when the config has no tuned parameters, or the file beside it is absent, damaged or of another config.
    """
    raw = read_config(config)
    executed = executed_assignment(raw)
    tuned = read_tuned(config, raw, workload, model)
    return build_tuned(with_smoothing(model, tuned.smoothing), workload, executed, tuned)


def build_tuned(
    model: nn.Module,
    workload: Workload,
    executed: Assignment,
    tuned: Tuned,
    results: Mapping[str, Result] | None = None,
) -> nn.Module:
    """A new model that computes with the tuned numbers: integer weights as code x scale, as the simulator does.

    results: layer -> what happens to its result beyond what its precision says.
    """
    built = shared_copy(model)
    parts = {}
    for layer in workload.layers:
        if layer.weight is not None:
            precision = executed.precision(layer.name)
            parts[layer.weight.key] = executed_weight(tuned.weights[layer.weight.key], precision)
            if (key := bias_key(model, layer)) is not None:
                parts[key] = cast(tuned.biases[key], arithmetic(precision))
    for key, value in joined(parts, model).items():
        for name in _names(model, key):
            path, _, last = name.rpartition(".")
            built.get_submodule(path)._parameters[last] = nn.Parameter(value.detach(), requires_grad=False)
    probe = _Frozen(executed, tuned.quantizers, results or {})
    if tuned.functional or any(layer.kind == "matmul" for layer in workload.layers):
        instrument_ops(built, workload, probe, frozenset(workload.layer_names))
    else:
        every = frozenset(workload.layer_names)
        instrument_modules(built, workload, probe, every, every)
    return built


class _Frozen:
    """The probe that rounds operands and results; parameters are rounded already.

    It changes while the model runs: what a layer with a `Result` of its own reads is kept until its result is there.
    """

    def __init__(
        self,
        executed: Assignment,
        quantizers: Mapping[Operand, ActivationQuantizer],
        results: Mapping[str, Result],
    ) -> None:
        self._precisions = {name: executed.precision(name) for name in executed}
        self._quantizers, self._results = quantizers, results
        self._read: dict[str, Tensor] = {}

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        rounded = self._rounded(layer, index, x)
        if layer in self._results and index == 0:
            self._read[layer] = rounded
        return rounded

    def output(self, layer: str, y: Tensor) -> Tensor:
        rounded = cast(y, arithmetic(self._precisions[layer]))
        return self._results[layer](rounded, self._read.pop(layer, y)) if layer in self._results else rounded

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        return x

    def _rounded(self, layer: str, index: int, x: Tensor) -> Tensor:
        quantizer, fmt = self._quantizers.get((layer, index)), self._precisions[layer].activation
        if quantizer is not None:
            return quantizer(x)
        return round_per_token(x, fmt) if fmt.per_token else cast(x, fmt)


def bias_key(model: nn.Module, layer: LayerSpec) -> str | None:
    """The state-dict name of a layer's bias, with its rows as its weight's key has them; None if it has none."""
    if layer.weight is None or not layer.bias_elements:
        return None
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    key, bracket, rows = layer.weight.key.partition("[")
    for name in (f"{layer.module}.bias", key.removesuffix("weight") + "bias"):
        if name in names:
            return name + bracket + rows
    return None


def joined(parts: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole parameters by name: those whose rows come apart (`in_proj_weight[0:64]`) are put together.

    Rows that no part holds stay the model's. Gradients reach every part.
    """
    if not any("[" in key for key in parts):
        return dict(parts)
    whole = {key: value for key, value in parts.items() if "[" not in key}
    for base in {key.partition("[")[0] for key in parts if "[" in key}:
        pieces, row = [], 0
        rows = sorted(((*_rows(key), parts[key]) for key in parts if key.startswith(f"{base}[")), key=lambda r: r[0])
        parameter = model.get_parameter(base).detach()
        for start, end, value in rows:
            pieces += [parameter[row:start], value]
            row = end
        whole[base] = torch.cat([*pieces, parameter[row:]])
    return whole


def part(model: nn.Module, key: str) -> Tensor:
    """The parameter, or the rows of it, that a key names."""
    parameter = model.get_parameter(key.partition("[")[0]).detach()
    return parameter if "[" not in key else parameter[slice(*_rows(key))]


def write_tuned(path: Path, tuned: Tuned) -> str:
    """Write the numbers as safetensors, whole or not at all; returns the SHA-256 of the file."""
    write_tensors(path, tensors_of(tuned), {"schema": SCHEMA, "functional": sorted(tuned.functional)})
    return file_hash(path)


def tensors_of(tuned: Tuned) -> dict[str, Tensor]:
    """The numbers by name; `tuned_from` is the inverse."""
    tensors: dict[str, Tensor] = {}
    for key, stored in tuned.weights.items():
        if isinstance(stored, QuantizedWeight):
            tensors[f"codes/{key}"], tensors[f"scales/{key}"] = stored.codes, stored.scales
        else:
            tensors[f"weight/{key}"] = stored
    tensors |= {f"bias/{key}": value for key, value in tuned.biases.items()}
    tensors |= {f"smoothing/{name}": factors for name, factors in tuned.smoothing.items()}
    for (layer, index), quantizer in tuned.quantizers.items():
        tensors[f"activation_scale/{layer}:{index}"] = torch.tensor(quantizer.scale, dtype=torch.float32)
        tensors[f"activation_zero_point/{layer}:{index}"] = torch.tensor(quantizer.zero_point, dtype=torch.int32)
    return tensors


def read_tuned(config: Path, raw: Mapping[str, Any], workload: Workload, model: nn.Module | None = None) -> Tuned:
    """The numbers beside a config whose content is `raw`; raises InputError when they are absent or not its own.

    model: the network of the config, whose own numbers layers take that a recovery step has raised to floats.
    """
    if "parameters" not in raw:
        raise InputError(
            "the config holds no tuned parameters", where=str(config), expected="a config that `haq finetune` wrote"
        )
    # A bare name: a config that people pass around names no file anywhere else.
    path = config.parent / Path(str(raw["parameters"])).name
    about, tensors = read_tensors(path, SCHEMA)
    if file_hash(path) != raw.get("parameters_sha256"):
        raise InputError(
            "the parameters are not those of the config", where=str(path), expected="the file that was written with it",
            way_out="tune again",
        )  # fmt: skip
    try:
        return tuned_from(tensors, executed_assignment(raw), workload, frozenset(about["functional"]), model)
    except KeyError as error:
        raise InputError("the parameters are not of this network", where=str(path), got=f"no {error.args[0]}") from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tuned_from(
    tensors: Mapping[str, Tensor],
    executed: Assignment,
    workload: Workload,
    functional: frozenset[str],
    model: nn.Module | None = None,
) -> Tuned:
    """The numbers out of tensors by name; raises KeyError with the name of one that is absent.

    A float layer whose weight is absent was an integer one when the tensors were written: weight and bias are then the
    model's own.
    """
    weights: dict[str, Stored] = {}
    quantizers = {}
    biases = _named(tensors, "bias/")
    smoothing = _named(tensors, "smoothing/")
    model = None if model is None else with_smoothing(model, smoothing)
    for layer in workload.layers:
        precision = executed.precision(layer.name)
        if layer.weight is not None:
            key, fmt = layer.weight.key, precision.weight
            if not fmt.is_integer and f"weight/{key}" not in tensors and model is not None:
                weights[key] = part(model, key)
                if (bias := bias_key(model, layer)) is not None:
                    biases[bias] = part(model, bias)
            elif fmt.is_integer:
                codes, scales = tensors[f"codes/{key}"], tensors[f"scales/{key}"]
                weights[key] = QuantizedWeight(fmt, codes, scales, layer.weight.channel_axis)
            else:
                weights[key] = tensors[f"weight/{key}"]
        for operand in operands(layer, precision):
            name = f"{operand[0]}:{operand[1]}"
            scale, zero = tensors[f"activation_scale/{name}"], tensors[f"activation_zero_point/{name}"]
            quantizers[operand] = ActivationQuantizer(precision.activation, float(scale), int(zero))
    return Tuned(weights, biases, quantizers, functional, smoothing)


def _named(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def operands(layer: LayerSpec, precision: Precision) -> tuple[Operand, ...]:
    """The layer's operands that are rounded with a scale of their own; the indices of an embedding are none.

    Per token the scale is found as the network runs.
    """
    if layer.kind == "embedding" or not precision.activation.is_integer or precision.activation.per_token:
        return ()
    return tuple((layer.name, index) for index in range(2 if layer.kind == "matmul" else 1))


def check_ties(workload: Workload, executed: Assignment) -> None:
    """Raise InputError where layers that share one weight are not in one precision: it is stored once."""
    first: dict[str, tuple[str, Precision]] = {}
    for layer in workload.layers:
        if layer.weight is not None and layer.name in executed:
            name, precision = first.setdefault(layer.weight.key, (layer.name, executed.precision(layer.name)))
            if precision != executed.precision(layer.name):
                raise InputError(
                    "layers that share one weight take one precision, for it is stored once", where=layer.name,
                    got=str(executed.precision(layer.name)), expected=f"{precision}, as {name} takes",
                )  # fmt: skip


def _rows(key: str) -> tuple[int, int]:
    start, _, end = key.partition("[")[2].removesuffix("]").partition(":")
    return int(start), int(end)


def _names(model: nn.Module, key: str) -> list[str]:
    """All the names that a parameter goes by."""
    parameter = model.get_parameter(key)
    return [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
