"""Put a probe at every operand and output of a model's quantizable layers, without edits to the model."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Protocol

from torch import Tensor, nn

from haq.errors import InputError
from haq.workload import LayerSpec, Workload


class Probe(Protocol):
    """What happens at a layer: `operand` sees every input but indices, `output` the result; either may replace it."""

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor: ...

    def output(self, layer: str, y: Tensor) -> Tensor: ...


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter and buffer with the original: milliseconds, no memory."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def instrument(model: nn.Module, workload: Workload, probe: Probe, layers: Collection[str]) -> None:
    """Attach the probe to the named layers of `model`, in place: hand in a copy.

    Raises InputError if a layer of the workload is not part of the model.
    """
    modules = dict(model.named_modules())
    calls: dict[str, list[str]] = {}
    for layer in workload.layers:
        calls.setdefault(layer.module, []).append(layer.name)
    for name, names in calls.items():
        if not set(names) & set(layers):
            continue
        if name not in modules:
            raise InputError("the model has no such layer", where=workload.name, got=name)
        hooks = _LayerHooks(tuple(names), frozenset(layers), probe)
        if len(names) > 1:
            model.register_forward_pre_hook(hooks.restart)
        modules[name].register_forward_pre_hook(hooks.before, with_kwargs=True)
        modules[name].register_forward_hook(hooks.after)


class _LayerHooks:
    """The hooks of one module. Changes while the model runs: it counts the module's calls within one forward pass."""

    def __init__(self, names: tuple[str, ...], probed: frozenset[str], probe: Probe) -> None:
        self._names, self._probed, self._probe = names, probed, probe
        self._call = 0

    def restart(self, model: nn.Module, args: Any) -> None:
        self._call = 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._call >= len(self._names):
            raise InputError(
                "a layer runs more often than in the trace",
                where=self._names[0],
                got=self._call + 1,
                expected=f"{len(self._names)} calls in one forward pass",
            )
        name = self._names[self._call]
        if name not in self._probed or isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return None
        if args:
            return (self._probe.operand(name, 0, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self._probe.operand(name, 0, kwargs["input"])}

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        name = self._names[self._call]
        if len(self._names) > 1:
            self._call += 1
        return self._probe.output(name, output) if name in self._probed else None


def layer_of(workload: Workload, name: str) -> LayerSpec:
    """The workload's layer of that name."""
    return next(layer for layer in workload.layers if layer.name == name)
