"""Put a probe at every operand and output of a model's quantizable layers, without edits to the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from haq.errors import InputError
from haq.nn.sites import OPERANDS, Site, Sites, running, storage_key
from haq.workload import Workload

BIAS_POSITION = {"aten.addmm": 0, "aten.addmv": 0, "aten.convolution": 2}


class Probe(Protocol):
    """What happens at a layer; each method returns what runs in place of the tensor that it was shown.

    operand: every input but indices. output: the result. parameter: a weight (channel_axis: of its output channels) or
    a bias (channel_axis None) that a functional layer reads; layers in their own module have theirs swapped there.
    """

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor: ...

    def output(self, layer: str, y: Tensor) -> Tensor: ...

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor: ...


class Onlooker:
    """A probe that changes nothing: what it is shown runs. Those that look at one thing only define that."""

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        return x

    def output(self, layer: str, y: Tensor) -> Tensor:
        return y

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        return x


Again = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""(operands, weight as the workload has it) -> what the op that has just run makes of them; its bias stays. Without a
weight the op keeps its own; of an embedding the operands stay."""


@runtime_checkable
class Repeater(Protocol):
    """A probe that also wants to run a layer's op on other numbers: `product` is called before `output`."""

    def product(self, layer: str, again: Again) -> None: ...


Listener = Callable[[str, int, Tensor], None]
"""Is told (layer, index, operand) before the operand is rounded, and changes nothing."""


def instrument_modules(
    model: nn.Module, workload: Workload, probe: Probe, operands: Collection[str], outputs: Collection[str]
) -> None:
    """Show the probe the operands and outputs of the named layers of `model` by module hooks, in place: hand in a copy.

    For models whose every layer is a module that is called: nothing but the layers is slowed down.
    """
    modules = dict(model.named_modules())
    calls: dict[str, list[str]] = {}
    for layer in workload.layers:
        calls.setdefault(layer.module, []).append(layer.name)
    for name, names in calls.items():
        read, written = frozenset(operands).intersection(names), frozenset(outputs).intersection(names)
        if not read and not written:
            continue
        hooks = _LayerHooks(tuple(names), read, written, probe)
        if len(names) > 1:
            model.register_forward_pre_hook(hooks.restart)
        modules[name].register_forward_pre_hook(hooks.before, with_kwargs=True)
        if len(names) > 1 or written:
            modules[name].register_forward_hook(hooks.after)


def instrument_ops(model: nn.Module, workload: Workload, probe: Probe, layers: Collection[str]) -> None:
    """Attach the probe to the named layers of `model` where their aten ops run, in place: hand in a copy.

    For any model, functional layers and attention products included; ops are named exactly as the tracer names them.
    """
    model.forward = _WatchedForward(model, workload, probe, frozenset(layers))


def followed(model: nn.Module) -> list[Listener] | None:
    """Who else is told the operands of a model that `instrument_ops` follows: append to it; None of any other model.

    Layers outside of the probe's are not told of.
    """
    return model.forward.listeners if isinstance(model.forward, _WatchedForward) else None


def is_instrumented(model: nn.Module) -> bool:
    """Whether a probe is attached, as to every quantized model."""
    if followed(model) is not None:
        return True
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(isinstance(getattr(hook, "__self__", None), _LayerHooks) for hook in hooks)


class _LayerHooks:
    """The hooks of one module. Changes while the model runs: it counts the module's calls within one forward pass.

    read, written: those of its calls whose operand and whose output the probe is shown.
    """

    def __init__(self, names: tuple[str, ...], read: frozenset[str], written: frozenset[str], probe: Probe) -> None:
        self._names, self._read, self._written, self._probe = names, read, written, probe
        self._call = 0

    def restart(self, model: nn.Module, args: Any) -> None:
        self._call = 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self._name()
        if name not in self._read or isinstance(module, nn.Embedding):
            return None
        if args:
            return (self._probe.operand(name, 0, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self._probe.operand(name, 0, kwargs["input"])}

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        name = self._name()
        if len(self._names) > 1:
            self._call += 1
        return self._probe.output(name, output) if name in self._written else None

    def _name(self) -> str:
        if self._call >= len(self._names):
            raise _runs_too_often(self._names[0])
        return self._names[self._call]


class _WatchedForward:
    """A model's forward pass under a dispatch mode that follows which layer each op is."""

    def __init__(self, model: nn.Module, workload: Workload, probe: Probe, layers: frozenset[str]) -> None:
        functools.update_wrapper(self, model.forward)
        self._model, self._forward, self._probe, self._layers = model, model.forward, probe, layers
        self.listeners: list[Listener] = []
        self._known = frozenset(workload.layer_names) | frozenset(workload.constant_products)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with as_traced(), running(self._model) as sites, self._ops(sites):
            return self._forward(*args, **kwargs)

    def _ops(self, sites: Sites) -> _Ops:
        return _Ops(sites, self._probe, self._known, self._layers, self.listeners)


class _Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the probe every multiplying op of one forward pass. It changes while the model runs: see `_product`."""

    def __init__(
        self,
        sites: Sites,
        probe: Probe,
        known: frozenset[str],
        layers: frozenset[str],
        listeners: Sequence[Listener],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sites, self._probe, self._known, self._layers = sites, probe, known, layers
        self._listeners = tuple(listeners)
        self._product: tuple[str, Tensor] | None = None  # the last layer and its result, which may yet get its bias

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = _name(func)
        if op in OPERANDS:
            site = self._sites.site(op, args)
            if site is not None and site.name not in self._known:
                raise _runs_too_often(site.name)
            if site is not None and site.name in self._layers:
                changed = self._changed(site, op, args)
                if isinstance(self._probe, Repeater):
                    self._probe.product(site.name, functools.partial(_again, site, func, changed, kwargs))
                result = self._probe.output(site.name, func(*changed, **kwargs))
                self._product = site.name, result
                return result
        elif op in ("aten.add", "aten.add_") and self._product is not None and self._is_bias(*args[:2]):
            return self._add_bias(self._product[0], func, args, kwargs)
        return func(*args, **kwargs)

    def _changed(self, site: Site, op: str, args: tuple[Any, ...]) -> list[Any]:
        changed = list(args)
        if op != "aten.embedding":
            for index, position in enumerate(site.activations):
                for listener in self._listeners:
                    listener(site.name, index, args[position])
                changed[position] = self._probe.operand(site.name, index, args[position])
        if site.weight is not None and not site.in_module:
            weight, axis = args[site.weight], _channel_axis(op, site.weight, args)
            if weight.dim() == 3 and weight.stride(0) == 0:  # one weight, expanded over the batch
                changed[site.weight] = self._probe.parameter(site.name, weight[0], axis - 1).expand_as(weight)
            else:
                changed[site.weight] = self._probe.parameter(site.name, weight, axis)
            bias = BIAS_POSITION.get(op)
            if bias is not None and args[bias] is not None:
                changed[bias] = self._probe.parameter(site.name, args[bias], None)
        return changed

    def _is_bias(self, x: Any, y: Any) -> bool:
        """Whether this adds a parameter to the last product: a linear layer on strided input is those two ops."""
        assert self._product is not None
        shape = self._product[1].shape
        return (
            isinstance(x, Tensor)
            and isinstance(y, Tensor)
            and storage_key(x) == storage_key(self._product[1])
            and y.shape == shape[-1:]
            and self._sites.key(y) is not None
        )

    def _add_bias(self, layer: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(args[0], self._probe.parameter(layer, args[1], None), *args[2:], **kwargs)
        rounded = self._probe.output(layer, result)
        self._product = None
        return result.copy_(rounded) if func._schema.is_mutable else rounded


@functools.cache
def _name(func: Any) -> str:
    return str(func).removesuffix(f".{func._overloadname}")


@contextmanager
def as_traced() -> Iterator[None]:
    """Run ops in the form in which the tracer sees them.

    Attention is two products and a softmax, as on the targets, instead of one fused kernel that hides them; and not in
    inference mode, where a dispatch mode gets composed ops (linear, matmul) whole.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    gradients = torch.is_grad_enabled()
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _again(
    site: Site, func: Any, args: Sequence[Any], kwargs: Any, operands: Sequence[Tensor], weight: Tensor | None
) -> Tensor:
    """The op's result with other operands and another weight, (outputs, inputs, ...), in place of those in `args`."""
    changed, op = list(args), _name(func)
    if op != "aten.embedding":
        for position, x in zip(site.activations, operands, strict=True):
            changed[position] = x
    if weight is not None:
        assert site.weight is not None
        old = args[site.weight]
        is_turned = op not in ("aten.convolution", "aten.embedding") and _channel_axis(op, site.weight, tuple(args)) > 0
        changed[site.weight] = (weight.t() if is_turned else weight).expand_as(old)
    result: Tensor = func(*changed, **kwargs)
    return result


def _channel_axis(op: str, weight: int, args: tuple[Any, ...]) -> int:
    """The axis of output channels in the weight at that argument position, as the op reads it."""
    if op == "aten.embedding":
        return 0
    if op == "aten.convolution":
        return 1 if args[6] else 0
    axes = int(args[weight].dim())
    return 0 if weight == OPERANDS[op][0] and axes == 2 else axes - 1


def _runs_too_often(layer: str) -> InputError:
    return InputError(
        "a layer runs that is not in the trace, or more often than there",
        where=layer,
        expected="the same layers in the same number in every forward pass",
        way_out="trace with an example that takes the same path",
    )
