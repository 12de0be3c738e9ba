"""An ONNX graph under way: nodes and constants by name, and one of each for all who ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import NodeProto, TensorProto, helper, numpy_helper

from haq.precision import Format


@dataclass(frozen=True)
class Style:
    """How numbers are written where ONNX leaves a choice.

    signed: activations as signed codes; code and zero-point are then less by half of the range.
    integer_kernels: what ONNX Runtime's kernels for integers on CPUs ask for. Where one can run, biases are int32 in
    units of the product of both scales, and 4-bit weights that meet 8-bit activations are cast to 8 bits.
    fp16_kernels: fp16 layers multiply tensors of that type. ONNX Runtime's CPU build computes such a layer in fp32 and
    drops the casts around it, so that nothing would be rounded; there the rounding is written out instead.
    """

    signed: bool = False
    integer_kernels: bool = True
    fp16_kernels: bool = False

    def computes(self, fmt: Format) -> bool:
        """Whether layers multiply tensors of this float format: bf16 has no kernels on a CPU."""
        return fmt.name == "fp32" or (fmt.name == "fp16" and self.fp16_kernels)


@dataclass
class Draft:
    """A graph under way. It changes: it grows.

    made: what was asked for -> the tensor that it became.
    """

    style: Style
    constants: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    made: dict[tuple[object, ...], str] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; returns the name of its result."""
        name = f"haq/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, tensor: TensorProto) -> str:
        """Add a constant; returns its name."""
        self.constants[tensor.name] = tensor
        return tensor.name

    def array(self, name: str, value: ArrayLike) -> str:
        """Add a constant of numpy's dtypes; returns its name."""
        return self.constant(numpy_helper.from_array(np.asarray(value), name))

    def once(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """What was made for this key before, or is made now."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def cast(self, tensor: str, *data_types: int) -> str:
        """The tensor in these types one after the other."""
        for to in data_types:
            tensor = self.once(("cast", tensor, to), lambda x=tensor, to=to: self.node("Cast", [x], to=to))  # type: ignore[misc]
        return tensor
