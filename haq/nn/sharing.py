"""Copies a model's modules without its tensors, in milliseconds."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter and buffer with the original: milliseconds, no memory."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    plain = [module for module in model.modules() if _is_plain(type(module))]
    for module in plain:
        memo[id(module)] = type(module).__new__(type(module))
    for module in plain:
        # What deepcopy would do, but for the dozen empty hook tables of every module, which take most of its time.
        vars(memo[id(module)]).update(
            (name, value if isinstance(value, _UNCHANGING) else _copied(name, value, memo))
            for name, value in vars(module).items()
            if name != "_compiled_call_impl"  # bound to the original; torch leaves it out of copies too
        )
    return copy.deepcopy(model, memo)


def _is_plain(cls: type[nn.Module]) -> bool:
    """Whether nothing in the class changes what a copy is."""
    names = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__slots__")
    own = [base for base in cls.__mro__ if base not in (nn.Module, object)]
    return not any(name in vars(base) for base in own for name in names)


def _copied(name: str, value: Any, memo: dict[int, Any]) -> Any:
    return type(value)() if name in _OWN_TABLES and not value else copy.deepcopy(value, memo)


_UNCHANGING = (bool, int, float, str, type(None))
_OWN_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
"""The tables that every module has for itself: hooks, parameters, buffers, children."""
