"""Names the multiplying ops of a running model: which layer each one is, for the tracer and for the simulator alike.

A convolution, matrix product or embedding that runs inside the module which owns its weight is that module. One that
runs on a parameter from elsewhere is a functional layer, named after the parameter (`attn.in_proj`), or on some of its
rows, `attn.in_proj/rows_0_64`. One of two activations is an attention product, `module/matmul_0`, counted within one
call of the innermost running module. A second call of the same thing appends `@1`.

The simulator uses it so: `with running(model, root) as sites:` around the forward pass installs the hooks that follow
the innermost module, and inside a TorchDispatchMode `sites.site(op, args)` says what an aten call is. A product
of two constants (rotary frequencies by positions, say) is counted like any other, but is no layer of the workload.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

OPERANDS: dict[str, tuple[int, int]] = {
    "aten.mm": (0, 1),
    "aten.bmm": (0, 1),
    "aten.mv": (0, 1),
    "aten.dot": (0, 1),
    "aten.addmm": (1, 2),
    "aten.addmv": (1, 2),
    "aten.baddbmm": (1, 2),
    "aten.convolution": (0, 1),
    "aten.embedding": (1, 0),
}
"""aten op -> positions of its two operands; where one of them is a weight, it is mostly the second."""


@dataclass(frozen=True)
class Site:
    """What one multiplying aten call is.

    name: of the layer, with its call number. activations: argument positions of the activations (two for an attention
    product). weight: argument position of the weight and key its state-dict name, with the rows where it is a part of a
    parameter (`in_proj_weight[0:64]`); absent for an attention product.
    in_module: whether the weight belongs to the module that is running, so that a module hook sees the call too.
    """

    name: str
    activations: tuple[int, ...]
    weight: int | None = None
    key: str | None = None
    in_module: bool = False


def storage_key(tensor: Tensor) -> int:
    """Names the memory behind a tensor and all its views, on real and on meta devices."""
    return int(tensor.untyped_storage()._cdata)


class Sites:
    """Follows the innermost running module and names calls. It changes while the model runs: it counts."""

    def __init__(self, model: nn.Module) -> None:
        # More than one in one piece of memory where parameters are views of a flat vector.
        self._parameters: dict[int, list[tuple[str, Tensor]]] = {}
        for key, parameter in model.named_parameters():
            self._parameters.setdefault(storage_key(parameter), []).append((key, parameter))
        self._stack: list[tuple[str, nn.Module, Counter[str]]] = [("", model, Counter())]
        self._calls: Counter[str] = Counter()

    @property
    def module_name(self) -> str:
        """The innermost running module."""
        return self._stack[-1][0]

    @property
    def module(self) -> nn.Module:
        return self._stack[-1][1]

    def enter(self, name: str, module: nn.Module) -> None:
        self._stack.append((name, module, Counter()))

    def leave(self) -> None:
        self._stack.pop()

    def parameter(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The parameter that `tensor` is, or is a view of, and its state-dict name (the first one of a tied weight)."""
        for key, parameter in self._parameters.get(storage_key(tensor), ()):
            if 0 <= tensor.storage_offset() - parameter.storage_offset() < _span(parameter):
                return key, parameter
        return None

    def key(self, tensor: Tensor) -> str | None:
        """The state-dict name of the parameter that `tensor` is, or is a view of."""
        found = self.parameter(tensor)
        return found[0] if found else None

    def local_name(self, what: str) -> str:
        """`module/what_0`, counted within this call of the innermost module."""
        name, _, counts = self._stack[-1]
        number = counts[what]
        counts[what] += 1
        return f"{name}/{what}_{number}" if name else f"{what}_{number}"

    def called(self, name: str) -> str:
        """`name`, or `name@k` when it ran k times before."""
        number = self._calls[name]
        self._calls[name] += 1
        return f"{name}@{number}" if number else name

    def site(self, op: str, args: tuple[Any, ...]) -> Site | None:
        """What the aten call is.

        None where the op does not multiply, convolves with a computed weight, or is a step of a recurrent module: those
        run fused on every target, so that the tracer reports the module as a whole.
        """
        if op not in OPERANDS or isinstance(self.module, nn.RNNBase):
            return None
        first, second = OPERANDS[op]
        for weight, other in ((second, first), (first, second)):
            found = self.parameter(args[weight])
            if found is not None:
                name, part, in_module = self._layer_name(args[weight], *found)
                return Site(self.called(name), (other,), weight, found[0] + part, in_module)
        if op in ("aten.convolution", "aten.embedding"):
            return None
        return Site(self.called(self.local_name("matmul")), (first, second))

    def _layer_name(self, weight: Tensor, key: str, parameter: Tensor) -> tuple[str, str, bool]:
        """The layer's name, which part of the parameter it multiplies with, whether the running module owns that."""
        name, module, _ = self._stack[-1]
        own = module._parameters.get("weight")
        base = key.removesuffix(".weight").removesuffix("_weight")
        # A weight may come expanded over the batch: count what it holds once.
        elements = math.prod(size for size, stride in zip(weight.shape, weight.stride(), strict=True) if stride)
        if elements == parameter.numel():
            # The root module has no name to lend.
            in_module = bool(name) and own is not None and self.key(own) == key
            return (name if in_module else base), "", in_module
        # Rows of a packed parameter: nn.MultiheadAttention with different keys.
        row = parameter[0].numel()
        start = weight.storage_offset() - parameter.storage_offset()
        rows = start // row, math.ceil((start + elements) / row)
        return f"{base}/rows_{rows[0]}_{rows[1]}", f"[{rows[0]}:{rows[1]}]", False


def _span(tensor: Tensor) -> int:
    """How many elements of its memory lie between a tensor's first and last one."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[Sites]:
    """Sites that follow the forward passes of `model` as long as the context lasts."""
    sites = Sites(model)
    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(lambda m, _, name=name: sites.enter(name, m)))
                handles.append(module.register_forward_hook(lambda *_: sites.leave(), always_call=True))
        yield sites
    finally:
        for handle in handles:
            handle.remove()
