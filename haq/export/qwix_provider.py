"""Runs haq's rules in qwix and reads the codes and scales that go with them; needs no haq.

`haq export --format qwix` writes this file with the rules of one config below it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import qwix
from qwix._src.core.dot_general import get_how_to_quantize
from qwix._src.core.qarray import HowToQuantize
from qwix._src.providers.ptq import WithAux, create_quantized_param, quantize_act
from qwix._src.utils import flax_util
from safetensors import safe_open


class HaqProvider(qwix.PtqProvider):
    """qwix's PtqProvider with what it leaves out, each where qwix alone refuses or keeps floats.

    Convolutions whose weights are narrower than their activations (int4 or int8 beside bf16, int4 beside int8), weights
    with a scale per tile beside integer activations, products of two affine operands, and tables (`nn.Embed`). There
    operands are dequantized in float32, weights rounded to the format of float activations, and sums are float32.
    `matched`: rule number -> the module paths that it was applied to. It changes as the model runs.
    """

    def __init__(self, rules: Sequence[qwix.QuantizationRule]) -> None:
        super().__init__(rules, _dot_general_fn=_dot_general)
        self.matched: dict[int, set[str]] = {index: set() for index in range(len(rules))}

    def _get_current_rule_and_op_id(self, op_name: str, **how: Any) -> tuple[Any, Any]:
        rule, op_id = super()._get_current_rule_and_op_id(op_name, **how)
        for index, other in enumerate(self._rules):
            if other is rule:
                self.matched[index].add("/".join(map(str, flax_util.get_current_module_path())))
        return rule, op_id

    def conv_general_dilated(self, lhs: Any, rhs: Any, strides: Any, padding: Any, *args: Any, **how: Any) -> jax.Array:
        rule, _ = self._get_current_rule_and_op_id("conv_general_dilated", only_rule=True)
        if _is_float(rule) or (rule.act_qtype == rule.weight_qtype and rule.tile_size is None):
            return super().conv_general_dilated(lhs, rhs, strides, padding, *args, **how)
        rule, op_id = self._get_current_rule_and_op_id("conv_general_dilated")
        if not isinstance(rhs, WithAux):
            numbers = args[2] if len(args) > 2 else how.get("dimension_numbers")
            outputs, inputs = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers).rhs_spec[:2]
            rhs = _quantized(rhs, rule, (outputs,), {inputs: rule.tile_size} if rule.tile_size else {})
        lhs = self._rounded(lhs, rule, f"{op_id}_lhs", (0,))
        weight = qwix.dequantize(rhs.array).astype(lhs.dtype)
        how = {**how, "preferred_element_type": jnp.float32, "precision": _precision(lhs)}
        return jax.lax.conv_general_dilated(lhs, weight, strides, padding, *args, **how)

    def dot_general(self, lhs: Any, rhs: Any, dimension_numbers: Any, *args: Any, **how: Any) -> jax.Array:
        rule, _ = self._get_current_rule_and_op_id("dot_general", only_rule=True)
        if _is_float(rule) or rule.act_qtype is None:
            return super().dot_general(lhs, rhs, dimension_numbers, *args, **how)
        name = None if isinstance(rhs, WithAux) else flax_util.find_param(rhs)
        is_product = name is None and not isinstance(rhs, WithAux)
        if not (rule.act_static_scale if is_product else rule.tile_size):
            return super().dot_general(lhs, rhs, dimension_numbers, *args, **how)
        rule, op_id = self._get_current_rule_and_op_id("dot_general")
        if is_product:
            rhs = self._rounded(rhs, rule, f"{op_id}_rhs", ())
        else:
            if name is not None:
                weight_how = get_how_to_quantize(
                    dimension_numbers=dimension_numbers, ndims=(lhs.ndim, rhs.ndim), for_lhs=False,
                    tile_size=rule.tile_size, qtype=rule.weight_qtype,
                    calibration_method=rule.weight_calibration_method,
                )  # fmt: skip
                rhs = create_quantized_param(name, rhs, weight_how)
            rhs = qwix.dequantize(rhs.array)
        kept = sorted(set(range(lhs.ndim)) - set(dimension_numbers[0][0]))
        lhs = self._rounded(lhs, rule, f"{op_id}_lhs", kept)
        return _float_dot(lhs, rhs.astype(lhs.dtype), dimension_numbers)

    def take(self, table: Any, indices: Any, axis: Any = None, **how: Any) -> jax.Array:
        rule, _ = self._get_current_rule_and_op_id("take", only_rule=True)
        if not isinstance(table, WithAux):
            if _is_float(rule) or flax_util.find_param(table) is None:
                return jnp.take(table, indices, axis=axis, **how)
            table = _quantized(table, rule, (0,), {1: rule.tile_size} if rule.tile_size else {})
        rows, scales = (jnp.take(part, indices, axis=0) for part in (table.array.qvalue, table.array.scale))
        return rows.astype(scales.dtype) * jnp.repeat(scales, rows.shape[-1] // scales.shape[-1], axis=-1)

    def get_intercept_map(self) -> dict[str, Any]:
        return super().get_intercept_map() | {"jax.numpy.take": self.take}

    def _rounded(self, x: Any, rule: Any, name: str, channelwise: Sequence[int]) -> jax.Array:
        """`x` through its codes and back, or as it is. Static: one scale for all; else one for each of `channelwise`.

        Codes are whole numbers, so that their float32 sums are those of an integer unit.
        """
        if rule.act_qtype is None:
            return x
        how = HowToQuantize(
            qtype=rule.act_qtype, channelwise_axes=() if rule.act_static_scale else channelwise,
            calibration_method=rule.act_calibration_method,
        )  # fmt: skip
        return qwix.dequantize(quantize_act(x, how, rule, name))


def _is_float(rule: Any) -> bool:
    return rule is None or rule.weight_qtype is None


def _quantized(weight: Any, rule: Any, channelwise: Sequence[int], tiles: Mapping[int, int]) -> WithAux:
    how = HowToQuantize(
        qtype=rule.weight_qtype, channelwise_axes=channelwise, tiled_axes=tiles,
        calibration_method=rule.weight_calibration_method,
    )  # fmt: skip
    return create_quantized_param(flax_util.find_param(weight), weight, how)


def _dot_general(lhs: Any, rhs: Any, dimension_numbers: Any, **how: Any) -> jax.Array:
    if isinstance(lhs, qwix.QArray):
        return qwix.dot_general(lhs, rhs, dimension_numbers, **how)
    return _float_dot(lhs, qwix.dequantize(rhs).astype(lhs.dtype), dimension_numbers)


def _float_dot(lhs: Any, rhs: Any, dimension_numbers: Any) -> jax.Array:
    precision = _precision(lhs)
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, precision=precision, preferred_element_type=jnp.float32)


def _precision(x: Any) -> jax.lax.Precision:
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def load_params(file: str | Path) -> dict[str, Any]:
    """Flax variables with haq's own codes and scales, out of the safetensors file that was written with the rules.

    int4 codes are two to a byte, the first in the lower half. Activation scales of a static rule are parameters too.
    """
    with safe_open(file, framework="flax") as opened:
        about = json.loads(opened.metadata()["about"])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    params: dict[tuple[str, ...], Any] = {}
    for name, array in arrays.items():
        path, _, kind = name.partition(":")
        key = tuple(path.split("/"))
        if kind == "":
            params[key] = WithAux(array, _HOW) if name.endswith("_scale") else array
        elif kind == "codes":
            shape = about["int4"].get(path)
            codes = array if shape is None else _unpacked(np.asarray(array), shape)
            params[key] = WithAux(qwix.QArray(codes, arrays[f"{path}:scales"]), _HOW)
    return {"params": flax.traverse_util.unflatten_dict(params)}


_HOW = HowToQuantize(qtype="int8")
"""How qwix would quantize again, which nothing here does."""


def _unpacked(packed: np.ndarray[Any, Any], shape: Sequence[int]) -> jax.Array:
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))]
    return jnp.asarray((halves.astype(np.int8) ^ 8) - 8).astype(jnp.int4).reshape(shape)
