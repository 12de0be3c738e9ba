"""The torch modules that twins are made of, as stock Flax linen layers and JAX functions, images channels-last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from torch import nn

from haq.errors import InputError

WIDE = {"preferred_element_type": jnp.float32}
"""Sums are fp32, as a TPU's matrix unit adds and as haq simulates, whatever the format of the operands."""


def rounded(y: jax.Array, dtype: str) -> jax.Array:
    """A layer's output rounded to the format that it multiplies in; everything between layers is float32."""
    return y.astype(dtype).astype(jnp.float32)


def _precision(dtype: str) -> jax.lax.Precision:
    """float32 means float32: a TPU would round the operands to bf16 otherwise."""
    return jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT


def _wide_conv(lhs: Any, rhs: Any, strides: Any, padding: Any, **how: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(lhs, rhs, strides, padding, **{**how, **WIDE})


def _wide_dot(lhs: Any, rhs: Any, dimensions: Any, **how: Any) -> jax.Array:
    return jax.lax.dot_general(lhs, rhs, dimensions, **{**how, **WIDE})


def _conv(source: nn.Conv2d, dtype: str, name: str) -> linen.Module:
    if isinstance(source.padding, str) or source.padding_mode != "zeros":
        raise InputError("a border that no twin has", where=name, got=f"{source.padding}, {source.padding_mode}")
    return linen.Conv(
        source.out_channels, source.kernel_size, source.stride, [(side, side) for side in source.padding],
        kernel_dilation=source.dilation, feature_group_count=source.groups, use_bias=source.bias is not None,
        dtype=dtype, precision=_precision(dtype), conv_general_dilated=_wide_conv, name=name,
    )  # fmt: skip


def _dense(source: nn.Linear, dtype: str, name: str) -> linen.Module:
    return linen.Dense(
        source.out_features, source.bias is not None, dtype, precision=_precision(dtype), dot_general=_wide_dot,
        name=name,
    )  # fmt: skip


def _embed(source: nn.Embedding, dtype: str, name: str) -> linen.Module:
    return linen.Embed(source.num_embeddings, source.embedding_dim, dtype, name=name)


def _layer_norm(source: nn.LayerNorm, dtype: str, name: str) -> linen.Module:
    # Two passes: the variance as a difference of means would lose digits that torch keeps.
    return linen.LayerNorm(source.eps, dtype, use_fast_variance=False, name=name)


LAYERS: Mapping[type[nn.Module], Callable[[Any, str, str], linen.Module]] = {
    nn.Conv2d: _conv,
    nn.Linear: _dense,
    nn.Embedding: _embed,
    nn.LayerNorm: _layer_norm,
}
"""Torch class -> (module, format, name) -> the stock Flax layer with the same parameters."""


class Product(linen.Module):
    """An attention product, in a module of its own so that a rule can name it."""

    dtype: str

    @linen.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        batch = tuple(range(a.ndim - 2))
        dimensions = ((a.ndim - 1,), (b.ndim - 2,)), (batch, batch)
        return _wide_dot(a.astype(self.dtype), b.astype(self.dtype), dimensions, precision=_precision(self.dtype))


def _unchanged(source: nn.Module, x: jax.Array) -> jax.Array:
    return x


def _pool_all(source: nn.AdaptiveAvgPool2d, x: jax.Array) -> jax.Array:
    if source.output_size not in (1, (1, 1)):
        raise InputError("a pooling that no twin has", got=source.output_size, expected="one value per channel")
    return x.mean((1, 2), keepdims=True)


def _max_pool(source: Any, x: jax.Array) -> jax.Array:
    side = (source.padding, source.padding)
    return linen.max_pool(x, (source.kernel_size,) * 2, (source.stride,) * 2, (side, side))


FUNCTIONS: Mapping[type[nn.Module], Callable[..., jax.Array]] = {
    nn.Identity: _unchanged,
    nn.Dropout: _unchanged,
    nn.ReLU: lambda source, x: jax.nn.relu(x),
    nn.ReLU6: lambda source, x: jax.nn.relu6(x),
    nn.Hardswish: lambda source, x: jax.nn.hard_swish(x),
    nn.Hardsigmoid: lambda source, x: jax.nn.hard_sigmoid(x),
    nn.Tanh: lambda source, x: jnp.tanh(x),
    nn.AdaptiveAvgPool2d: _pool_all,
    nn.MaxPool2d: _max_pool,
}
"""Torch class without parameters -> what it does in inference."""


def flat(x: jax.Array) -> jax.Array:
    """(batch, 1, 1, channels) as (batch, channels)."""
    return x.reshape(len(x), -1)
