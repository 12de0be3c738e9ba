"""The forward passes of MobileNetV3 in JAX, line by line those of `haq.nn.models.mobilenet_v3`."""

from __future__ import annotations

import jax

from haq.export.flax_twins.leaves import flat
from haq.export.flax_twins.twin import Twin, run
from haq.nn.models.mobilenet_v3 import InvertedResidual, MobileNetV3, SqueezeExcitation


def squeeze_excitation(twin: Twin, x: jax.Array) -> jax.Array:
    """Every channel scaled by a gate that the channels' means open."""
    gate = x
    for name in ("avgpool", "fc1", "activation", "fc2", "scale_activation"):
        gate = run(twin, name, gate)
    return gate * x


def inverted_residual(twin: Twin, x: jax.Array) -> jax.Array:
    """The block, and the shortcut where it has one."""
    out: jax.Array = run(twin, "block", x)
    return out + x if twin.source.has_shortcut else out


def mobilenet_v3(twin: Twin, x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) -> (batch, classes)."""
    return run(twin, "classifier", flat(run(twin, "avgpool", run(twin, "features", x))))


FORWARDS = {
    SqueezeExcitation: squeeze_excitation,
    InvertedResidual: inverted_residual,
    MobileNetV3: mobilenet_v3,
}
