"""Runs haq's rules in qwix, and reads the codes and scales that go with them.

Needs jax, flax, qwix and safetensors, nothing of haq.
"""

import dataclasses
import json

import flax
import jax
import jax.numpy as jnp
import qwix
from qwix._src.core.qarray import HowToQuantize
from qwix._src.providers.ptq import WithAux, create_quantized_param
from qwix._src.utils import flax_util
from safetensors import safe_open


class HaqProvider(qwix.PtqProvider):
    """qwix's PtqProvider, and what it leaves out: weight-only and int4/int8 convolutions, and tables (nn.Embed).

    A weight beside float activations is dequantized in float32 and rounded to the format of the activations; sums are
    float32. `matched`: rule number -> the module paths it was applied to; look at it after the first run.
    """

    def __init__(self, rules):
        super().__init__(rules, _dot_general_fn=_dot_general)
        self.matched = {index: set() for index in range(len(rules))}

    def _get_current_rule_and_op_id(self, op_name, **how):
        rule, op_id = super()._get_current_rule_and_op_id(op_name, **how)
        if rule is not None:
            path = "/".join(map(str, flax_util.get_current_module_path()))
            self.matched[next(i for i, other in enumerate(self._rules) if other is rule)].add(path)
        return rule, op_id

    def conv_general_dilated(self, lhs, rhs, window_strides, padding, *args, **how):
        rule, _ = self._get_current_rule_and_op_id("conv_general_dilated", only_rule=True)
        is_stock = rule is None or rule.weight_qtype is None or rule.act_qtype == rule.weight_qtype
        if is_stock and (rule is None or rule.tile_size is None):
            return super().conv_general_dilated(lhs, rhs, window_strides, padding, *args, **how)
        rule, op_id = self._get_current_rule_and_op_id("conv_general_dilated")
        if not isinstance(rhs, WithAux):
            axis = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, how.get("dimension_numbers")).rhs_spec
            tiles = {axis[1]: rule.tile_size} if rule.tile_size else {}
            rhs = _quantized(rhs, rule, (axis[0],), tiles)
        if rule.act_qtype is not None:
            # The codes are whole numbers and exact in float32: the sums are those of an integer unit.
            lhs = qwix.dequantize(self._activation(lhs, rule, op_id))
        weight = qwix.dequantize(rhs.array).astype(lhs.dtype)
        how = {**how, "preferred_element_type": jnp.float32}
        return jax.lax.conv_general_dilated(lhs, weight, window_strides, padding, *args, **how)

    def _activation(self, x, rule, op_id):
        """The input rounded with the static scale and zero-point in the parameters, all axes sharing them."""
        how = HowToQuantize(qtype=rule.act_qtype, channelwise_axes=(0,), calibration_method=rule.act_calibration_method)
        return _quantize_act(x, how, rule, op_id + "_lhs")

    def take(self, table, indices, axis=None, **how):
        rule, _ = self._get_current_rule_and_op_id("take", only_rule=True)
        if not isinstance(table, WithAux):
            if rule is None or rule.weight_qtype is None or flax_util.find_param(table) is None:
                return jnp.take(table, indices, axis=axis, **how)
            table = _quantized(table, rule, (0,), {})
        codes, scales = table.array.qvalue, table.array.scale
        return jnp.take(codes, indices, axis=0).astype(scales.dtype) * jnp.take(scales, indices, axis=0)

    def get_intercept_map(self):
        return super().get_intercept_map() | {"jax.numpy.take": self.take}
