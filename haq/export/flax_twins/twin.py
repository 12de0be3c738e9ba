"""A Flax linen module that mirrors a torch module, child by child under the same names, with images channels-last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flax import linen

from haq.errors import InputError
from haq.export.flax_twins.leaves import FUNCTIONS, LAYERS, Product, rounded

Forward = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Net:
    """What all modules of one twin share.

    forwards: torch class -> (twin, inputs) -> output, the class's `forward` in JAX. dtypes: module path -> the format
    in which that layer multiplies; float32 where it is absent.
    """

    forwards: Mapping[type[torch.nn.Module], Forward]
    dtypes: Mapping[str, str]

    def dtype(self, path: tuple[str, ...]) -> str:
        return self.dtypes.get("/".join(path), "float32")


class Twin(linen.Module):
    """One torch module that holds others. source: that torch module, of which only the structure is read."""

    source: Any
    net: Net

    @linen.compact
    def __call__(self, *inputs: Any) -> Any:
        return self.net.forwards[type(self.source)](self, *inputs)


def run(twin: Twin, name: str, *inputs: Any) -> Any:
    """The output of a child module of `twin`; raises InputError on a class of module that has no twin."""
    source = twin.source.get_submodule(name)
    if type(source) in FUNCTIONS:
        return FUNCTIONS[type(source)](source, *inputs)
    if type(source) in LAYERS:
        dtype = twin.net.dtype((*twin.path, name))
        return rounded(LAYERS[type(source)](source, dtype, name)(*inputs), dtype)
    if type(source) not in twin.net.forwards:
        raise InputError(
            "a module that has no Flax twin", where="/".join((*twin.path, name)), got=type(source).__name__,
            expected="a shipped network, without structural techniques",
            way_out="take the rules into a Flax model of your own",
        )  # fmt: skip
    return Twin(source, twin.net, name=name)(*inputs)


def chain(twin: Twin, x: Any, *context: Any) -> Any:
    """`torch.nn.Sequential`, and any other module whose children run one after the other in the same context."""
    for name, _ in twin.source.named_children():
        x = run(twin, name, x, *context)
    return x


def product(twin: Twin, index: int, a: Any, b: Any) -> Any:
    """The `index`-th attention product of a module, haq's layer `module/matmul_<index>`: (..., m, k) by (..., k, n)."""
    name = f"matmul_{index}"
    dtype = twin.net.dtype((*twin.path, name))
    return rounded(Product(dtype, name=name)(a, b), dtype)
