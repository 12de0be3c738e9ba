"""The forward passes of EfficientNet-Lite in JAX, line by line those of `haq.nn.models.efficientnet_lite`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from haq.export.flax_twins.leaves import flat
from haq.export.flax_twins.twin import Twin, run
from haq.nn.models.efficientnet_lite import EfficientNetLite, InvertedBlock


def same_padded(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """`x` with TensorFlow's SAME border for a strided convolution."""
    needed = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in needed), (0, 0)))


def inverted_block(twin: Twin, x: jax.Array) -> jax.Array:
    """Expand, depthwise, project, shortcut where shapes agree."""
    source = twin.source
    out = run(twin, "_clip0", run(twin, "_bn0", run(twin, "_expand_conv", x))) if source.expands else x
    depthwise = source._depthwise_conv
    if depthwise.stride[0] > 1:
        out = same_padded(out, depthwise.kernel_size[0], depthwise.stride[0])
    out = run(twin, "_clip1", run(twin, "_bn1", run(twin, "_depthwise_conv", out)))
    out = run(twin, "_bn2", run(twin, "_project_conv", out))
    return out + x if source.has_shortcut else out


def efficientnet_lite(twin: Twin, x: jax.Array) -> jax.Array:
    """(batch, height, width, 3) -> (batch, classes)."""
    x = run(twin, "_clip0", run(twin, "_bn0", run(twin, "_conv_stem", same_padded(x, 3, 2))))
    x = run(twin, "_blocks", x)
    x = run(twin, "_clip1", run(twin, "_bn1", run(twin, "_conv_head", x)))
    return run(twin, "_fc", flat(run(twin, "_avg_pooling", x)))


FORWARDS = {InvertedBlock: inverted_block, EfficientNetLite: efficientnet_lite}
