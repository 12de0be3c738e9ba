"""Tells what every layer of a running model reads, quantized or not, without a change to what it computes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.instrument import followed

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(eq=False)
class Call:
    """One forward pass. inputs: samples in it. mask: (inputs, tokens), 0 where a text is padded, if any is."""

    inputs: int
    mask: Tensor | None
    calls: Counter[str] = field(default_factory=Counter)


class Ear(Protocol):
    """Who listens. wants: asked at the beginning of every forward pass. hear: a layer's operand, before rounding."""

    def wants(self) -> bool: ...

    def hear(self, call: Call, layer: str, index: int, x: Tensor) -> None: ...


@contextmanager
def listening(model: nn.Module, layers: Collection[str], ear: Ear) -> Iterator[None]:
    """Let the ear hear the layers of `model` as long as the context lasts; the model is then as it was.

    In a model whose ops are followed (one with attention, quantized) every layer is heard; in any other those that are
    modules: not attention products, and not weights that are used outside of their module. Threads may call the model
    at once. Raises InputError where the model has none of the layers.
    """
    active = threading.local()

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        active.call = _call(args, kwargs) if ear.wants() else None

    def end(*_: Any) -> None:
        active.call = None

    def tell(layer: str, index: int, x: Tensor) -> None:
        if (call := getattr(active, "call", None)) is not None and layer in wanted:
            with torch.no_grad():
                ear.hear(call, layer, index, x.detach())

    wanted, listeners = frozenset(layers), followed(model)
    with ExitStack() as stack:
        if listeners is not None:
            listeners.append(tell)
            stack.callback(listeners.remove, tell)
        else:
            modules = _heard_modules(model, wanted)
            if not modules and wanted:
                raise InputError(
                    "the model has none of the config's layers", where=type(model).__name__, got=sorted(wanted)[0],
                    expected="the network of the config, neither compiled nor wrapped",
                )  # fmt: skip
            for name, module in modules.items():
                hook = _Hook(name, tell, active)
                stack.callback(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True).remove)
        stack.callback(model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(end, always_call=True).remove)
        yield


class _Hook:
    """The hook of one module: the second call of it in a forward pass is layer `name@1`."""

    def __init__(self, name: str, tell: Any, active: threading.local) -> None:
        self._name, self._tell, self._active = name, tell, active

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = getattr(self._active, "call", None)
        if call is None:
            return
        number = call.calls[self._name]
        call.calls[self._name] += 1
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor):
            self._tell(f"{self._name}@{number}" if number else self._name, 0, x)


def _heard_modules(model: nn.Module, layers: frozenset[str]) -> dict[str, nn.Module]:
    """The modules that are layers and may be called.

    Not those within torch's own attention: it reads their weights, and a hook there would end its fused path, whose
    sums have other last digits.
    """
    names = {layer.partition("@")[0] for layer in layers if "/" not in layer}
    fused = [name for name, module in model.named_modules() if isinstance(module, _FUSED)]
    return {
        name: module
        for name, module in model.named_modules()
        if name in names
        and not isinstance(module, nn.Embedding)
        and not any(name.startswith(f"{outer}.") or not outer for outer in fused)
    }


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """What is known of a forward pass from its arguments; None where no tensor tells how many samples there are."""
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), None)
    if first is None or not len(first):
        return None
    mask = kwargs.get("attention_mask")
    padded = isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == len(first) and not bool(mask.all())
    return Call(len(first), mask.bool() if padded and mask is not None else None)
