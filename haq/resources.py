"""Where haq finds its shipped profiles and spaces, and where it keeps its caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from haq.errors import InputError, nearest

_PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The shipped `hardware_profiles` or `search_spaces`: inside an installed wheel, or at the top of a checkout."""
    installed = _PACKAGE / "_data" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder


def shipped_names(folder: str) -> tuple[str, ...]:
    """Names of the TOML files in a shipped folder."""
    return tuple(sorted(path.stem for path in shipped(folder).glob("*.toml")))


def find_toml(folder: str, name_or_path: str, kind: str) -> Path:
    """The TOML file that a name or a user's own path means; raises InputError with the nearest name."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.parent != Path():
        if path.is_file():
            return path.resolve()
        raise InputError(f"{kind} file does not exist", got=name_or_path, expected="a readable TOML file")
    names = shipped_names(folder)
    if name_or_path not in names:
        raise InputError(
            f"unknown {kind}",
            got=name_or_path,
            expected=f"one of {', '.join(names)}, or a path to a TOML file",
            way_out=nearest(name_or_path, names),
        )
    return shipped(folder) / f"{name_or_path}.toml"


def cache_dir() -> Path:
    """The user's cache folder for haq: $HAQ_CACHE_DIR, else the platform's convention; created on demand by writers."""
    if chosen := os.environ.get("HAQ_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "haq"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "haq" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "haq"
