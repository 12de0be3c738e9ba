"""Reads TOML and checks it against a pydantic model; every fault becomes one line with file, key, got and expected."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from haq.errors import InputError, nearest

Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path) -> dict[str, Any]:
    """The file's tables; raises InputError when it is absent, unreadable or not TOML (with line and column)."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("cannot read the file", where=str(path), got=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise InputError("the file is not UTF-8 text", where=str(path), expected="a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError("the file is not TOML", where=str(path), got=str(error), expected="TOML 1.0") from error


def validate(model: type[Model], raw: Mapping[str, Any], where: str) -> Model:
    """`raw` as a `model`; raises InputError for the first fault, naming `where`, the key, got and expected."""
    try:
        return model.model_validate(dict(raw))
    except ValidationError as error:
        raise _first_fault(error, model, where) from None


def _first_fault(error: ValidationError, model: type[BaseModel], where: str) -> InputError:
    # An unknown key explains more than the missing one that it was probably meant for.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault, more = faults[0], len(faults) - 1
    key = ".".join(str(part) for part in fault["loc"])
    also = f"{more} more fault{'s' if more > 1 else ''} in this file" if more else ""
    if fault["type"] == "extra_forbidden":
        known = _keys_beside(model, fault["loc"])
        hint = nearest(str(fault["loc"][-1]), known)
        return InputError(
            "unknown key",
            where=where,
            got=key,
            expected=f"one of {', '.join(known)}",
            way_out="; ".join(filter(None, (hint, also))),
        )
    if fault["type"] == "missing":
        return InputError(f"key {key!r} is missing", where=where, expected=f"a value for {key!r}", way_out=also)
    expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    what = f"key {key!r} is wrong" if key else "the keys do not fit together"
    got = None if isinstance(fault["input"], Mapping) else fault["input"]
    return InputError(what, where=where, got=got, expected=expected, way_out=also)


def _keys_beside(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys that the table holding `loc` may have."""
    here: type[BaseModel] | None = model
    for part in loc[:-1]:
        if here is not None and isinstance(part, str) and part in here.model_fields:
            here = _model_in(here.model_fields[part].annotation)
    return tuple(here.model_fields) if here is not None else ()


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model inside a type such as `tuple[Rule, ...] | None`."""
    if arguments := typing.get_args(annotation):
        return next((found for argument in arguments if (found := _model_in(argument))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
