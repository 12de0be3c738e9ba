"""What tools that swap torch modules can take of a network: its layers' modules, and all numbers by state-dict name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import QuantizedWeight
from haq.nn.tuned import Tuned, bias_key, build_tuned, part
from haq.precision import FP32, Assignment, Precision
from haq.workload import LayerSpec, Workload

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""haq's float formats by torch's names."""

HEADER = '''"""{about}"""

from __future__ import annotations

{imports}
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

'''


def hidden(layer: LayerSpec, model: nn.Module, functional: frozenset[str], known: Sequence[type[nn.Module]]) -> str:
    """Why a tool that swaps modules of the known classes cannot reach this layer; "" where it can."""
    if layer.weight is None:
        return "an attention product is no module, it stays FP32"
    if layer.name in functional or "[" in layer.weight.key or layer.weight.key != f"{layer.module}.weight":
        return "the op runs outside the module that owns the weight, it stays FP32"
    module = dict(model.named_modules()).get(layer.module)
    if module is None or not any(isinstance(module, cls) and type(module).forward is cls.forward for cls in known):
        return f"a {layer.kind} of class {type(module).__name__} is not swapped, it stays FP32"
    return ""


def with_float_layers(
    tuned: Tuned, model: nn.Module, workload: Workload, written: Mapping[str, Precision]
) -> tuple[Assignment, Tuned]:
    """(what runs, its numbers) when only the written layers are quantized and all others compute in FP32 as `model`.

    A weight that a written layer shares with another keeps its codes.
    """
    runs = Assignment.of({layer.name: written.get(layer.name, FP32) for layer in workload.layers})
    kept = {layer.weight.key for layer in workload.layers if layer.weight and layer.name in written}
    weights, biases = dict(tuned.weights), dict(tuned.biases)
    for layer in workload.layers:
        if layer.weight is not None and layer.weight.key not in kept:
            weights[layer.weight.key] = part(model, layer.weight.key)
            if (key := bias_key(model, layer)) is not None:
                biases[key] = part(model, key)
    read = {name: runs.precision(name).activation for name in runs}
    used = {
        operand: quantizer
        for operand, quantizer in tuned.quantizers.items()
        if read[operand[0]].is_integer and not read[operand[0]].per_token
    }
    return runs, replace(tuned, weights=weights, biases=biases, quantizers=used)


def state_of(model: nn.Module, workload: Workload, runs: Assignment, tuned: Tuned) -> dict[str, Tensor]:
    """All numbers of the network by state-dict name, as `haq.export.loading.load_numbers` reads them."""
    # Float formats are written before their cast: the loader's module holds them in its own dtype.
    built = build_tuned(model, workload, Assignment.uniform(workload.layer_names, FP32), tuned)
    tensors = {f"plain/{key}": value for key, value in built.state_dict().items()}
    names: dict[int, list[str]] = {id(parameter): [] for parameter in model.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    for key, stored in tuned.weights.items():
        if isinstance(stored, QuantizedWeight) and "[" not in key:
            for name in names[id(model.get_parameter(key))]:
                del tensors[f"plain/{name}"]
                tensors[f"codes/{name}"], tensors[f"scales/{name}"] = stored.codes, shaped_scales(stored)
                if stored.format.group is not None:
                    tensors[f"group/{name}"] = torch.tensor(stored.format.group)
    return tensors


def shaped_scales(stored: QuantizedWeight) -> Tensor:
    """The scales so that they broadcast against the codes; (rows, blocks) where groups share one."""
    if stored.format.group is not None:
        return stored.scales
    shape = [1] * stored.codes.dim()
    shape[stored.channel_axis] = -1
    return stored.scales.reshape(shape)


def dtype_of(precision: Precision) -> str:
    """The torch dtype that a layer computes in; integer products add up in float32."""
    return DTYPES[arithmetic(precision).name]


def source(about: str, imports: str, data: Mapping[str, Any], functions: Sequence[Callable[..., Any]]) -> str:
    """The text of a Python file that holds the data as literals and carries the functions with it."""
    lines = [f"{name} = {_literal(value)}" for name, value in data.items()]
    code = "\n\n".join(inspect.getsource(function) for function in functions)
    return HEADER.format(about=about, imports=imports) + "\n".join(lines) + "\n\n\n" + code


def placed(out: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of an export at `out`, one per suffix; raises InputError where its name is no Python module's."""
    if out.suffix not in ("", ".json", ".py") or not out.stem.isidentifier():
        raise InputError(
            "not where the files can go", where="--out", got=str(out),
            expected="a name such as exported/mixed.json: a Python file of that name is written beside it",
        )  # fmt: skip
    return [out.with_suffix(suffix) for suffix in suffixes]


def _literal(value: Any) -> str:
    """Python source, one entry of a list or mapping per line."""
    if isinstance(value, dict) and value:
        return "{\n" + "".join(f"    {key!r}: {entry!r},\n" for key, entry in value.items()) + "}"
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"    {entry!r},\n" for entry in value) + "]"
    return repr(value)


def as_float(x: float) -> float:
    """The float32 nearest to a number, as torch will hold it."""
    return float(torch.tensor(x, dtype=torch.float32))
