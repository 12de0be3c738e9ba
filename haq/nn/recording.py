"""Watches one forward pass of a model and keeps what its modules gave, with all that a replay of them depends on."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from haq.nn.instrument import as_traced
from haq.nn.sites import OPERANDS, Sites, running, storage_key
from haq.nn.task import Inputs, forward
from haq.nn.trace_ops import op_name

_PLAIN = (type(None), bool, int, float, str, torch.Size, torch.dtype, torch.device)
"""What may stand beside tensors in an output that is kept: it cannot be changed."""


class Kept:
    """A module's output. It changes once at most: into a copy, before somebody writes over the original.

    storages: names of the memory that the output lay in when the module returned it.
    """

    def __init__(self, leaves: list[Any], spec: TreeSpec) -> None:
        self._leaves, self._spec = leaves, spec
        self._is_private = False
        self.storages = frozenset(storage_key(leaf) for leaf in leaves if isinstance(leaf, Tensor))

    def value(self, *, copy: bool) -> Any:
        """The output, in memory of its own where a copy is asked for; views of one tensor stay views of one copy."""
        return tree_unflatten(_copied(self._leaves, {}) if copy else self._leaves, self._spec)

    def become_private(self, copies: dict[int, Tensor]) -> None:
        """Move to memory that nobody else writes to. copies: those made at this moment, by storage."""
        if not self._is_private:
            self._leaves, self._is_private = _copied(self._leaves, copies), True


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: its ops are the pass's ops from `start` up to, without, `end`.

    parent: the place among the recording's calls of the one that it ran in. kept: its output where it can be replayed:
    a call that wrote to nothing that was there before, whose output lies in memory of its own, and that left nothing
    else behind which a later op reads.
    """

    module: str
    parent: int | None
    start: int
    end: int
    kept: Kept | None


@dataclass(frozen=True)
class Position:
    """Where a layer ran. op: its multiplication; start: the first op that may differ once the layer is changed."""

    layer: str
    op: int
    start: int


@dataclass(frozen=True, eq=False)
class Recording:
    """One pass of a model over one batch. It holds the outputs of all modules in memory.

    calls: in the order in which they began, so that a parent comes before its children. touched: the storages that each
    op reads or writes. parameters: (module, name) -> parameter. returned: the storages of the output.
    """

    output: Any
    calls: tuple[Call, ...]
    layers: tuple[Position, ...]
    touched: tuple[frozenset[int], ...]
    parameters: Mapping[tuple[str, str], Tensor | None]
    returned: frozenset[int]


def record(model: nn.Module, inputs: Inputs) -> Recording:
    """Run the model, which is as it was afterwards; without gradients, attention taken apart as for the tracer.

    Storages are named by address; the recorder holds them weakly, so that no address is given out twice.
    """
    with torch.no_grad(), as_traced(), running(model) as sites, _Pass(sites) as watch, _watched(model, watch):
        output = forward(model, inputs)
    parameters = {(m, n): p for m, module in model.named_modules() for n, p in module._parameters.items()}
    return Recording(
        output, watch.calls(), tuple(watch.layers), tuple(watch.touched), parameters, frozenset(_storages(output))
    )


class _Pass(TorchDispatchMode):
    """Notes every op of one forward pass. It changes while the model runs.

    born: storage -> the op that made it, -1 where it was there before the pass.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sites = sites
        self.touched: list[frozenset[int]] = []
        self.layers: list[Position] = []
        self._written: list[tuple[int, ...]] = []
        self._made: list[tuple[int, ...]] = []
        self._born: dict[int, int] = {}
        self._alive: list[StorageWeakRef] = []
        self._readers: defaultdict[int, list[Kept]] = defaultdict(list)
        self._open: list[int] = []
        self._calls: list[tuple[str, int | None, int]] = []
        self._returned: dict[int, tuple[int, Kept | None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._note_layer(op_name(func), args)
        written = _written(func, args, kwargs)
        copies: dict[int, Tensor] = {}
        for storage in written:
            for kept in self._readers.pop(storage, ()):
                kept.become_private(copies)
        read = self._meet((args, kwargs), -1)
        result = func(*args, **kwargs)
        made = self._meet(result, len(self.touched))
        self._written.append(written)
        self._made.append(tuple(s for s in made if self._born[s] == len(self.touched)))
        self.touched.append(frozenset((*read, *made)))
        return result

    def enter(self, module: str) -> int:
        """Note that a call begins; returns its place."""
        self._calls.append((module, self._open[-1] if self._open else None, len(self.touched)))
        self._open.append(len(self._calls) - 1)
        return self._open[-1]

    def leave(self, place: int, output: Any) -> None:
        """Note what the call returned."""
        assert self._open.pop() == place, "a call ends that did not begin last"
        self._meet(output, -1)
        leaves, spec = tree_flatten(output)
        kept = Kept(leaves, spec) if _can_be_kept(leaves) else None
        for storage in kept.storages if kept else ():
            self._readers[storage].append(kept)  # type: ignore[arg-type]
        self._returned[place] = len(self.touched), kept

    def calls(self) -> tuple[Call, ...]:
        """The calls of the finished pass."""
        last = {storage: op for op, touched in enumerate(self.touched) for storage in touched}
        found = []
        for place, (module, parent, start) in enumerate(self._calls):
            end, kept = self._returned[place]
            if kept is not None and not self._can_be_replayed(start, end, kept, last):
                kept = None
            found.append(Call(module, parent, start, end, kept))
        return tuple(found)

    def _can_be_replayed(self, start: int, end: int, kept: Kept, last: Mapping[int, int]) -> bool:
        own = all(self._born[storage] >= start for storage in kept.storages)
        pure = all(self._born[storage] >= start for written in self._written[start:end] for storage in written)
        made = {storage for storages in self._made[start:end] for storage in storages}
        return own and pure and all(last[storage] < end for storage in made - kept.storages)

    def _note_layer(self, op: str, args: tuple[Any, ...]) -> None:
        site = self._sites.site(op, args) if op in OPERANDS else None
        if site is not None:
            now = len(self.touched)
            # A layer in a module of its own is rounded by the module's hooks, any other one where its op runs.
            start = self._calls[self._open[-1]][2] if site.in_module and self._open else now
            self.layers.append(Position(site.name, now, start))

    def _meet(self, values: Any, born: int) -> tuple[int, ...]:
        """The storages of the tensors in `values`; new ones are born now."""
        found = []
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                storage = storage_key(leaf)
                found.append(storage)
                if storage not in self._born:
                    self._born[storage] = born
                    self._alive.append(StorageWeakRef(leaf.untyped_storage()))  # type: ignore[no-untyped-call]
        return tuple(found)


@contextlib.contextmanager
def forwards(model: nn.Module, replaced: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """The model with other functions in the place of some modules' `forward` as long as the context lasts."""
    modules = [(model.get_submodule(name), function) for name, function in replaced.items()]
    own = [vars(module).get("forward") for module, _ in modules]
    try:
        for module, function in modules:
            module.forward = function
        yield
    finally:
        for (module, _), before in zip(modules, own, strict=True):
            if before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = before


def _watched(model: nn.Module, watch: _Pass) -> contextlib.AbstractContextManager[None]:
    """Every module below the root tells when it begins and what it returns."""

    def telling(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def told(*args: Any, **kwargs: Any) -> Any:
            place = watch.enter(name)
            output = inner(*args, **kwargs)
            watch.leave(place, output)
            return output

        return told

    return forwards(model, {name: telling(name, module.forward) for name, module in model.named_modules() if name})


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The storages that the op writes over."""
    if not func._schema.is_mutable:
        return ()
    values = (
        args[place] if place < len(args) else kwargs.get(argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return tuple(storage for value in values for storage in _storages(value))


def _storages(values: Any) -> tuple[int, ...]:
    return tuple(storage_key(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _can_be_kept(leaves: list[Any]) -> bool:
    """Whether these are tensors and constants, and a copy of them keeps which tensors share memory."""
    dtypes: dict[int, torch.dtype] = {}
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.layout != torch.strided or dtypes.setdefault(storage_key(leaf), leaf.dtype) != leaf.dtype:
                return False
        elif not isinstance(leaf, _PLAIN):
            return False
    return bool(dtypes)


def _copied(leaves: list[Any], copies: dict[int, Tensor]) -> list[Any]:
    """The leaves with the same strides in copies of their storages: equal numbers must meet equal kernels."""
    made = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            storage = storage_key(leaf)
            if storage not in copies:
                elements = leaf.untyped_storage().nbytes() // leaf.element_size()
                copies[storage] = leaf.detach().as_strided((elements,), (1,), 0).clone()
            leaf = copies[storage].as_strided(leaf.size(), leaf.stride(), leaf.storage_offset())
        made.append(leaf)
    return made
