"""Reads hardware profiles from TOML, with the options that a name like `a100:tf32` switches on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from haq.errors import InputError, lookup
from haq.hardware.lookup import read_correction
from haq.hardware.schema import HardwareProfile
from haq.resources import find_toml, shipped_names
from haq.validation import load_toml, validate

__all__ = [
    "FOLDER",
    "HardwareProfile",
    "build_profile",
    "list_profiles",
    "load_profile",
    "option_titles",
    "split_target",
]

FOLDER = "hardware_profiles"


def load_profile(name_or_path: str) -> HardwareProfile:
    """The profile that a name or a path means, options after a colon: `a100`, `a100:tf32,80gb`, `my/board.toml`.

    The profile's name keeps the options. Raises InputError naming file, key, got and expected.
    """
    base, options = split_target(name_or_path)
    path = find_toml(FOLDER, base, "target")
    stamp = path.stat()
    return _load(path, options, stamp.st_mtime_ns, stamp.st_size)


def list_profiles() -> tuple[HardwareProfile, ...]:
    """The shipped profiles, without options, by name."""
    return tuple(load_profile(name) for name in shipped_names(FOLDER))


def option_titles(name_or_path: str) -> dict[str, str]:
    """The options that the target has -> one line each."""
    path = find_toml(FOLDER, split_target(name_or_path)[0], "target")
    return {name: str(table.get("title", "")) for name, table in _options(load_toml(path), str(path)).items()}


@cache
def _load(path: Path, options: tuple[str, ...], _mtime_ns: int, _size: int) -> HardwareProfile:
    profile = build_profile({"name": path.stem, **load_toml(path)}, options, str(path))
    return profile if profile.lookup is None else profile.attach(read_correction(profile.lookup, path))


def build_profile(raw: Mapping[str, Any], options: Sequence[str], where: str) -> HardwareProfile:
    """The profile in a parsed TOML document, with options switched on; raises InputError naming `where` and the key."""
    known = _options(raw, where)
    merged = dict(raw)
    for option in options:
        changes = {k: v for k, v in lookup(known, option, "option", where=where).items() if k != "title"}
        merged = _merged(merged, changes, f"{where}, options.{option}")
    merged.pop("options", None)
    if options and isinstance(merged["name"], str):
        merged["name"] = f"{merged['name']}:{','.join(options)}"
    return validate(HardwareProfile, merged, where)


def split_target(name_or_path: str) -> tuple[str, tuple[str, ...]]:
    """`a100:tf32,80gb` -> (`a100`, options in alphabetical order, each once); a colon before a slash is of the path."""
    base, colon, tail = name_or_path.rpartition(":")
    if not colon or "/" in tail or "\\" in tail:
        return name_or_path, ()
    options = sorted({option.strip() for option in tail.split(",")} - {""})
    if not options:
        raise InputError("no option after the colon", got=name_or_path, expected="for example a100:tf32")
    return base, tuple(options)


def _options(raw: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    options = raw.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(table, dict) for table in options.values()):
        raise InputError("key 'options' is wrong", where=where, got=options, expected="tables [options.NAME]")
    return options


def _merged(raw: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`raw` with the option's keys: figures and plain values replaced, tables merged, rows put before the others."""
    result = dict(raw)
    for key, change in changes.items():
        old = raw.get(key)
        if isinstance(change, Mapping) and isinstance(old, Mapping) and "source" not in change:
            result[key] = _merged(old, change, where)
        elif key in ("means", "executes", "refuses"):
            if not isinstance(change, list):
                raise InputError(
                    f"key {key!r} is wrong", where=where, got=change, expected=f"rows [[options.NAME.{key}]]"
                )
            result[key] = [*change, *(old if isinstance(old, list) else [])]
        else:
            result[key] = change
    return result
