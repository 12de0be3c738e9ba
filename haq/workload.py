"""What must run for one sample: the graph of quantizable layers and the glue ops between them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LAYER_KINDS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
    "embedding",
    "matmul",
)
"""Quantizable layers; `matmul` is an attention product: two activations, no weight, named `module/matmul_0`."""

GLUE_KINDS = (
    "add", "mul", "elementwise", "activation", "smooth", "norm", "softmax", "pool", "reduce", "reshape", "gather",
)  # fmt: skip
"""Ops that move or combine activations: `reshape` only where data moves (cat, pad, contiguous), never a view.

An `activation` cuts off (relu, relu6, leaky) and costs an integer runtime nothing; a `smooth` one (gelu, silu, sigmoid,
hardswish, tanh) is a curve, which some runtimes look up or compute in a kernel of its own.
"""

Shape = tuple[int, ...]


def elements(shape: Shape) -> int:
    """How many numbers a tensor of this shape holds."""
    return math.prod(shape)


@dataclass(frozen=True)
class WeightSpec:
    """A layer's weight. `key` is its state-dict name: layers that share a key are tied, and stored once.

    Where a layer multiplies with some rows of a packed parameter they are part of the key (`in_proj_weight[0:64]`).

    channel_axis: the output-channel axis, which gets one scale per index (embedding: one per row).
    """

    key: str
    shape: Shape
    channel_axis: int

    @property
    def elements(self) -> int:
        return elements(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def depth(self) -> int:
        """Elements of one channel: inputs of a Linear, inputs of a group times the kernel of a convolution."""
        return self.elements // self.channels


@dataclass(frozen=True)
class Gemm:
    """The layer as `count` matrix products of (m, k) by (k, n) per sample (im2col for convolutions)."""

    m: int
    n: int
    k: int
    count: int


@dataclass(frozen=True)
class LayerSpec:
    """One quantizable layer. Shapes are per sample, without the batch axis; names in `inputs` are nodes or inputs.

    A module that runs more than once appears once per call, later ones as `name@1`, `name@2`, with the same weight key.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    macs: int
    gemm: Gemm | None
    weight: WeightSpec | None = None
    bias_elements: int = 0
    groups: int = 1

    @property
    def input_elements(self) -> int:
        return sum(elements(s) for s in self.input_shapes)

    @property
    def output_elements(self) -> int:
        return elements(self.output_shape)

    @property
    def is_depthwise(self) -> bool:
        """One filter per input channel."""
        # Channels come before the spatial axes; before them a network may have folded time or views into the batch.
        return self.groups > 1 and self.groups == self.input_shapes[0][-1 - int(self.kind[-2])]

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution."""
        return self.kind.startswith("conv") and self.weight is not None and all(k == 1 for k in self.weight.shape[2:])

    @property
    def module(self) -> str:
        """The name without its call number: what a pattern rule, a pin or a module swap refers to."""
        return self.name.split("@")[0]


@dataclass(frozen=True)
class GlueOp:
    """An op between layers that is never assigned a precision.

    parameters: elements it owns (a norm's scale and shift).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    parameters: int = 0

    @property
    def input_elements(self) -> int:
        return sum(elements(s) for s in self.input_shapes)

    @property
    def output_elements(self) -> int:
        return elements(self.output_shape)


@dataclass(frozen=True)
class Unsupported:
    """An op the tracer does not know: counted and shown, never priced at zero."""

    op: str
    module: str


@dataclass(frozen=True)
class Workload:
    """A traced network, per sample.

    nodes: layers and glue in execution order, so that every producer precedes its consumers.
    inputs: name -> shape of the network's inputs; `outputs`: the nodes whose results leave the network.
    unquantized_parameters: elements that belong to no layer's weight or bias (norms, positions, class tokens).
    constant_products: products that do not depend on an input (rotary angles, say): a compiler folds them.
    """

    name: str
    inputs: tuple[tuple[str, Shape], ...]
    nodes: tuple[LayerSpec | GlueOp, ...]
    outputs: tuple[str, ...]
    unquantized_parameters: int = 0
    unsupported: tuple[Unsupported, ...] = ()
    constant_products: tuple[str, ...] = ()

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(n for n in self.nodes if isinstance(n, LayerSpec))

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Node or input name -> the nodes that read it, in order."""
        found: dict[str, list[str]] = {name: [] for name, _ in self.inputs}
        for node in self.nodes:
            found.setdefault(node.name, [])
            for source in node.inputs:
                found.setdefault(source, []).append(node.name)
        return {name: tuple(users) for name, users in found.items()}

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Elements of all parameters, tied weights once."""
        weights = {layer.weight.key: layer.weight.elements for layer in self.layers if layer.weight}
        biases = {layer.module: layer.bias_elements for layer in self.layers}
        return sum(weights.values()) + sum(biases.values()) + self.unquantized_parameters

    def to_json(self) -> str:
        raw = dataclasses.asdict(self)
        raw["nodes"] = [dict(dataclasses.asdict(n), node=type(n).__name__) for n in self.nodes]
        return json.dumps(raw)

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """The inverse of `to_json`."""
        raw = json.loads(text)
        return cls(
            name=raw["name"],
            inputs=tuple((name, tuple(shape)) for name, shape in raw["inputs"]),
            nodes=tuple(_node(n) for n in raw["nodes"]),
            outputs=tuple(raw["outputs"]),
            unquantized_parameters=raw["unquantized_parameters"],
            unsupported=tuple(Unsupported(**u) for u in raw["unsupported"]),
            constant_products=tuple(raw["constant_products"]),
        )


def _node(raw: dict[str, Any]) -> LayerSpec | GlueOp:
    kind = raw.pop("node")
    raw["inputs"] = tuple(raw["inputs"])
    raw["input_shapes"] = tuple(tuple(s) for s in raw["input_shapes"])
    raw["output_shape"] = tuple(raw["output_shape"])
    if kind == "GlueOp":
        return GlueOp(**raw)
    if raw["weight"]:
        raw["weight"] = WeightSpec(raw["weight"]["key"], tuple(raw["weight"]["shape"]), raw["weight"]["channel_axis"])
    if raw["gemm"]:
        raw["gemm"] = Gemm(**raw["gemm"])
    return LayerSpec(**raw)
