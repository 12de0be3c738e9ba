"""Finds the function that a text such as `package.module:function` or `./file.py:function` means."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from haq.errors import InputError, MissingExtra, nearest

_REFERENCE = re.compile(r"(\./[\w./-]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")
_EXPECTED_REFERENCE = "'package.module:function' or './file.py:function'"


def check_reference(text: str) -> str:
    """The same text; raises ValueError unless it is `package.module:function` or `./file.py:function`."""
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"not a reference to a function, expected {_EXPECTED_REFERENCE}")
    return text


def resolve(reference: str, folder: Path, extras: tuple[str, ...] = (), *, where: str = "") -> Callable[..., Any]:
    """The function that a reference means; `./file.py` is looked up in `folder`.

    Raises InputError when file, module or function is absent, and MissingExtra when a package of `extras` is.
    """
    try:
        check_reference(reference)
    except ValueError:
        raise InputError("not a function", where=where, got=reference, expected=_EXPECTED_REFERENCE) from None
    found = find(reference, folder, extras, where=where)
    if not callable(found):
        raise InputError(
            "no such function", where=where, got=reference, expected=f"a function of {reference.split(':')[0]}"
        )
    return found


def find(reference: str, folder: Path, extras: tuple[str, ...] = (), *, where: str = "") -> object:
    """The object that a well-formed reference means, callable or not; raises as `resolve` does."""
    source, name = reference.split(":")
    try:
        module = _from_file(folder, source, where) if source.startswith("./") else importlib.import_module(source)
    except ModuleNotFoundError as error:
        raise missing_module(error, reference, extras, where=where) from error
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            "no such function",
            where=where,
            got=reference,
            expected=f"a function of {source}",
            way_out=nearest(name, known),
        )
    return getattr(module, name)


def search_current_folder() -> None:
    """Let modules be found in the current directory too, as `python -m` would."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def missing_module(error: ModuleNotFoundError, reference: str, extras: tuple[str, ...], *, where: str) -> InputError:
    """The error to raise for a module that could not be imported on behalf of `reference`."""
    name = error.name or str(error)
    wanted = reference.split(":")[0]
    if wanted == name or wanted.startswith(f"{name}."):
        return InputError(
            f"module {name!r} cannot be found", where=where, got=reference, expected="an importable module",
            way_out="run in the folder that holds it, or install it",
        )  # fmt: skip
    if extras:
        return MissingExtra(name, ",".join(extras))
    return InputError(f"{reference} needs the package {name!r}, which is not installed", where=where)


def _from_file(folder: Path, source: str, where: str) -> ModuleType:
    path = (folder / source).resolve()
    # A run directory holds results that people pass around: code never comes out of one (decision 15).
    if (folder / "run.json").exists():
        raise InputError(
            "code is not loaded from a run directory",
            where=where,
            got=source,
            expected="a package or a space's own folder",
        )
    if not path.is_file():
        raise InputError("file does not exist", where=where, got=source, expected=f"a Python file in {folder}")
    name = f"haq_space_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} is not a Python file"
    assert spec.loader is not None, f"{path} has no loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
