"""Compares a qwix export with haq's simulation layer by layer, each layer of the twin on what haq's layer read.

A network amplifies: where sums in another order leave a number on the other side of a half, one code changes, then many
behind it, and the outputs of two correct runs differ. So outputs cannot tell a wrong layer from a right one; this can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import Tensor, nn

from haq.export.qwix_rules import module_path
from haq.export.qwix_run import QwixRun
from haq.nn.exportable import Exportable
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import cast
from haq.nn.task import Inputs, forward
from haq.nn.tuned import build_tuned
from haq.precision import FORMATS, Assignment, Format, Precision
from haq.workload import LayerSpec

DIGITS = {"bf16": 8, "fp16": 11, "fp32": 24}
"""Significant bits: a number that rounds to q lies within |q| 2^-bits of it, its neighbours within twice that."""

GLUE = 16 * 2.0**-23
"""What norms, softmaxes, means and curves in float32 may differ by: 16 last places of the tensor's largest number."""


@dataclass(frozen=True)
class LayerGap:
    """How far a layer of the twin is from haq's, as shares of what arithmetic allows: above 1 it is another layer.

    operand: of what reaches it when every layer before gave haq's result: by how much it is further than half a step
    from the number that haq rounded it to, over GLUE. result: by how much its result on haq's operands is further than
    a step from haq's, over the float32 error of two sums of n products, (n + 4) 2^-23 of the products' magnitudes
    (Higham 2002, section 3.1; the 4 are the dequantized factors, the bias and the scale).
    """

    layer: str
    operand: float
    result: float


def layer_gaps(run: QwixRun, what: Exportable, inputs: Inputs) -> tuple[LayerGap, ...]:
    """All layers of the twin, in the order in which they run. what: the config that the run's file was made of."""
    simulated, seen = _simulated(what, inputs)
    layers = {module_path(layer): layer for layer in what.workload.layers}
    gaps: list[LayerGap] = []

    def compared(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        layer = layers.get("/".join(context.module.path))
        if layer is None or context.method_name != "__call__":
            return call(*args, **kwargs)
        result, read = seen[layer.name]
        operands = [] if layer.kind == "embedding" else [_as_torch(layer, arg) for arg in args]
        rounded = _rounded(what, layer, operands, read)
        # A hundredth of the way towards its code no number is at a half, where a division's last place decides.
        fed = [_as_jax(layer, q + 0.99 * (x - q)) for x, q in zip(operands, rounded, strict=True)]
        got = _as_torch(layer, call(*(fed or args), **kwargs))
        expected, fmt = result.reshape(got.shape), arithmetic(what.executed.precision(layer.name))
        excess = (cast(got, fmt) - expected).abs() - _step(expected, fmt)
        result_gap = _share(excess, _sum_error(what, layer, simulated, rounded, expected))
        operand_gap = _operand_gap(what, layer, operands[0], rounded[0]) if rounded else 0.0
        gaps.append(LayerGap(layer.name, operand_gap, result_gap))
        return _as_jax(layer, expected)

    with linen.intercept_methods(compared):
        run.module.apply(run.variables, *run.arrays(inputs))
    return tuple(gaps)


def unrounded(what: Exportable) -> nn.Module:
    """The simulation with the same stored weights and all else in fp32: how far it is away is what rounding does as
    the network runs. Two runs whose roundings have nothing in common are sqrt(2) times as far apart (root mean
    square), and sums in another order change fewer than all."""
    fp32 = FORMATS["fp32"]
    wide = {name: Precision(what.executed.precision(name).weight, fp32) for name in what.executed}
    return build_tuned(what.model, what.workload, Assignment.of(wide), replace(what.numbers, quantizers={}))


def _simulated(what: Exportable, inputs: Inputs) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """The simulation, and layer -> its rounded result and the rounded first operand on these inputs."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def kept(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        def keep(result: Tensor, read: Tensor) -> Tensor:
            seen[name] = result.detach().clone(), read.detach().clone()
            return result

        return keep

    hooks = {name: kept(name) for name in what.workload.layer_names}
    model = build_tuned(what.model, what.workload, what.executed, what.numbers, hooks)
    with torch.no_grad():
        forward(model, inputs)
    return model, seen


def _rounded(what: Exportable, layer: LayerSpec, operands: list[Tensor], read: Tensor) -> list[Tensor]:
    """What haq's layer multiplies; the second factor of a product is a layer's result as it is, and rounded here."""
    if not operands:
        return []
    first = read.reshape(operands[0].shape)
    if len(operands) == 1:
        return [first]
    quantizer = what.numbers.quantizers.get((layer.name, 1))
    second = operands[1]
    return [first, quantizer(second) if quantizer else cast(second, what.executed.precision(layer.name).activation)]


def _operand_gap(what: Exportable, layer: LayerSpec, x: Tensor, q: Tensor) -> float:
    fmt, quantizer = what.executed.precision(layer.name).activation, what.numbers.quantizers.get((layer.name, 0))
    if quantizer is not None:
        low, high = -quantizer.zero_point, 2**fmt.bits - 1 - quantizer.zero_point
        x, half = x.clamp(low * quantizer.scale, high * quantizer.scale), torch.tensor(quantizer.scale / 2)
    elif fmt.per_token:
        half = x.abs().amax(-1, keepdim=True) / fmt.largest / 2
    else:
        half = _step(q, fmt) / 2
    return _share((x - q).abs() - half, GLUE * q.abs().max())


def _step(x: Tensor, fmt: Format) -> Tensor:
    return x.abs() * 2.0 ** (1 - DIGITS[fmt.name])


def _sum_error(
    what: Exportable, layer: LayerSpec, simulated: nn.Module, rounded: list[Tensor], result: Tensor
) -> Tensor:
    """Of each result, by the magnitudes of its products: haq's layer on magnitudes alone gives their sums."""
    if layer.kind == "embedding":
        return result.abs() * 2.0**-23
    assert layer.gemm is not None
    sizes = [operand.abs() for operand in rounded]
    if layer.weight is None:
        sums = sizes[0] @ sizes[1]
    else:
        numbers = simulated.get_submodule(layer.module).named_parameters(recurse=False)
        parameters = {name: parameter.detach().abs() for name, parameter in numbers}
        sums = torch.func.functional_call(what.model.get_submodule(layer.module), parameters, (sizes[0],))
    return (layer.gemm.k + 4) * 2.0**-23 * sums.detach()


def _share(excess: Tensor, allowed: Tensor) -> float:
    """The largest share of what is allowed; where that is nothing, any excess is infinitely much."""
    return float(torch.where(excess <= 0, 0.0, excess / allowed).max())


def _as_torch(layer: LayerSpec, x: jax.Array) -> Tensor:
    tensor = torch.from_numpy(np.array(x, dtype=np.float32))
    return tensor.movedim(-1, 1) if layer.kind == "conv2d" else tensor


def _as_jax(layer: LayerSpec, x: Tensor) -> jax.Array:
    return jnp.asarray((x.movedim(1, -1) if layer.kind == "conv2d" else x).contiguous().numpy())
