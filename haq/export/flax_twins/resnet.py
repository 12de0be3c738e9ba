"""The forward passes of ResNets in JAX, line by line those of `haq.nn.models.resnet`."""

from __future__ import annotations

import jax

from haq.export.flax_twins.leaves import flat
from haq.export.flax_twins.twin import Twin, run
from haq.nn.models.resnet import BasicBlock, Bottleneck, ResNet


def basic_block(twin: Twin, x: jax.Array) -> jax.Array:
    """Two 3x3 convolutions and the shortcut."""
    identity = _identity(twin, x)
    x = jax.nn.relu(run(twin, "bn1", run(twin, "conv1", x)))
    x = run(twin, "bn2", run(twin, "conv2", x))
    return jax.nn.relu(x + identity)


def bottleneck(twin: Twin, x: jax.Array) -> jax.Array:
    """1x1, 3x3, 1x1 and the shortcut."""
    identity = _identity(twin, x)
    x = jax.nn.relu(run(twin, "bn1", run(twin, "conv1", x)))
    x = jax.nn.relu(run(twin, "bn2", run(twin, "conv2", x)))
    x = run(twin, "bn3", run(twin, "conv3", x))
    return jax.nn.relu(x + identity)


def resnet(twin: Twin, x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) -> (batch, classes)."""
    x = run(twin, "maxpool", jax.nn.relu(run(twin, "bn1", run(twin, "conv1", x))))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        x = run(twin, stage, x)
    return run(twin, "fc", flat(run(twin, "avgpool", x)))


def _identity(twin: Twin, x: jax.Array) -> jax.Array:
    return x if twin.source.downsample is None else run(twin, "downsample", x)


FORWARDS = {BasicBlock: basic_block, Bottleneck: bottleneck, ResNet: resnet}
