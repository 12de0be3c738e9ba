"""The numbers of a config as Flax parameters by module path: qwix's codes and scales, and floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.export.qwix_rules import Plan, Rule, module_path, rule
from haq.nn.exportable import Exportable
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import QuantizedWeight, cast, executed_weight
from haq.nn.tuned import bias_key
from haq.precision import Precision
from haq.workload import LayerSpec

SCHEMA = "haq.qwix/v1"
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPS = {"conv2d": "conv_general_dilated", "linear": "dot_general", "matmul": "dot_general"}
"""Kind of layer -> the op after whose first run in a module qwix names the module's activation scale."""


def params(what: Exportable, plan: Plan) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, facts) as `qwix_provider.load_params` reads them.

    `path/kernel` and the like; integers as `path/kernel:codes` and `path/kernel:scales`, int4 two to a byte, for which
    the facts have the shape.
    Rules, formats and the config are among the facts too.
    """
    tensors: dict[str, Tensor] = {}
    int4: dict[str, list[int]] = {}
    for layer in what.workload.layers:
        done = plan.written[layer.name]
        if done is None or layer.name != layer.module:
            continue
        if done.weight.is_integer:
            tensors |= activations(what, layer, rule(layer, done))
        if layer.weight is None:
            continue
        name = f"{module_path(layer)}/{'embedding' if layer.kind == 'embedding' else 'kernel'}"
        stored = what.numbers.weights[layer.weight.key]
        if done.weight.is_integer:
            assert isinstance(stored, QuantizedWeight)
            codes = placed(layer, stored.codes)
            tensors[f"{name}:scales"] = placed_scales(layer, stored.scales)
            tensors[f"{name}:codes"] = codes if done.weight.bits == 8 else packed(codes)
            if done.weight.bits == 4:
                int4[name] = list(codes.shape)
        else:
            weight = executed_weight(stored, what.executed.precision(layer.name))
            tensors[name] = placed(layer, weight).to(TORCH_DTYPES[done.weight.name])
        tensors |= _bias(what, layer, done)
    about = {"schema": SCHEMA, "int4": int4, **rules_json(plan), "config": dict(what.config)}
    return tensors | _norms(what.model), about


def rules_json(plan: Plan) -> dict[str, Any]:
    """The rules as data: what the Python snippet has as code, and per layer what is executed."""
    return {
        "rules": [one.to_json() for one in plan.rules],
        "dtypes": dict(plan.dtypes),
        "layers": {name: None if done is None else str(done) for name, done in plan.written.items()},
    }


def placed(layer: LayerSpec, weight: Tensor) -> Tensor:
    """A weight in Flax's order of axes: a table as it is, (inputs, outputs), (height, width, inputs, outputs)."""
    assert layer.weight is not None
    if layer.kind == "embedding":
        return weight
    last = weight.movedim(layer.weight.channel_axis, -1)
    return last if layer.kind == "linear" else last.permute(1, 2, 0, 3)


def placed_scales(layer: LayerSpec, scales: Tensor) -> Tensor:
    """Scales with as many axes as the placed weight, 1 where one serves the axis. scales: (channels[, blocks])."""
    by_channel = scales.reshape(len(scales), -1)
    if layer.kind == "embedding":
        return by_channel
    return by_channel.T if layer.kind == "linear" else by_channel.T[None, None]


def packed(codes: Tensor) -> Tensor:
    """int4 codes, two to a byte: the first in the lower half, the last half empty where their number is odd."""
    flat = codes.reshape(-1)
    halves = torch.nn.functional.pad(flat, (0, len(flat) % 2)).reshape(-1, 2).to(torch.int16) & 15
    return (halves[:, 0] | halves[:, 1] << 4).to(torch.uint8)


def activations(what: Exportable, layer: LayerSpec, one: Rule) -> dict[str, Tensor]:
    """The static scales and zero-points of a layer's operands, for signed codes; nothing where the rule has none."""
    if not one.act_static_scale:
        return {}
    shape = (1,) * (len(layer.input_shapes[0]) + 1)
    found = {}
    for index, side in enumerate(("lhs", "rhs") if layer.weight is None else ("lhs",)):
        quantizer = what.numbers.quantizers[layer.name, index]
        name = f"{module_path(layer)}/{OPS[layer.kind]}0_{side}"
        found[f"{name}_scale"] = torch.full(shape, quantizer.scale, dtype=torch.float32)
        found[f"{name}_zero_point"] = torch.full(shape, quantizer.zero_point - 128, dtype=torch.int8)
    return found


def uncarried(what: Exportable) -> tuple[str, ...]:
    """The parameters of the model that no Flax parameter takes over."""
    layers = {key.partition("[")[0] for key in (*what.numbers.weights, *what.numbers.biases)}
    norms = {f"{name}.{kind}" for name, norm in _layer_norms(what.model) for kind in ("weight", "bias")}
    return tuple(name for name, _ in what.model.named_parameters() if name not in layers | norms)


def _bias(what: Exportable, layer: LayerSpec, done: Precision) -> dict[str, Tensor]:
    key = bias_key(what.model, layer)
    if key is None:
        return {}
    fmt = arithmetic(done)
    return {f"{module_path(layer)}/bias": cast(what.numbers.biases[key], fmt).to(TORCH_DTYPES[fmt.name])}


def _norms(model: nn.Module) -> dict[str, Tensor]:
    names = {"weight": "scale", "bias": "bias"}
    return {
        f"{name.replace('.', '/')}/{names[kind]}": parameter.detach()
        for name, norm in _layer_norms(model)
        for kind, parameter in norm.named_parameters()
    }


def _layer_norms(model: nn.Module) -> list[tuple[str, nn.LayerNorm]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
