"""What can go wrong, as one tree whose root the command line catches once.

HaqError
 ├── InputError       what the user gave is wrong (exit 2)
 │    └── MissingExtra   an optional package is not installed (exit 2)
 ├── InfeasibleError  no assignment meets the limits (exit 3)
 └── CheckFailed      a check or gate said no (exit 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class HaqError(Exception):
    """Any failure that haq explains in one line; `exit_code` is what the command line returns."""

    exit_code = 2


class InputError(HaqError):
    """The user's input is wrong: says what, where, got, expected and the way out, in one line."""

    def __init__(
        self, what: str, *, where: str = "", got: object = None, expected: str = "", way_out: str = ""
    ) -> None:
        parts = [f"{where}: {what}" if where else what]
        if got is not None:
            parts.append(f"got {got!r}")
        if expected:
            parts.append(f"expected {expected}")
        if way_out:
            parts.append(way_out)
        super().__init__(" ".join("; ".join(parts).split()))


class MissingExtra(InputError):
    """A package that only an extra installs is needed and absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"package {package!r} is not installed", expected=f"extra {extra!r}", way_out=f"pip install 'haq[{extra}]'"
        )


class InfeasibleError(HaqError):
    """No assignment can meet the limits; the text names the closest reachable values and what blocks more."""

    exit_code = 3


class CheckFailed(HaqError):
    """A check that was asked for did not pass."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Say "did you mean 'x'?" for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def lookup(registry: Mapping[str, T], name: str, kind: str, *, where: str = "") -> T:
    """The registry's entry for `name`; an unknown name raises InputError with the known ones and the nearest."""
    if name not in registry:
        raise InputError(
            f"unknown {kind}",
            where=where,
            got=name,
            expected=f"one of {', '.join(sorted(registry))}",
            way_out=nearest(name, registry),
        )
    return registry[name]
