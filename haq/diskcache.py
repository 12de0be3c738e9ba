"""The user's cache folder as one budget: what it holds, the limit it is kept under, and its clean-up."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from haq.errors import InputError
from haq.resources import cache_dir

DEFAULT_LIMIT_MB = 4000.0
"""Room for the trained weights of every shipped space (about 300 MB) and many of the user's own; HAQ_CACHE_LIMIT_MB."""


@dataclass(frozen=True)
class CacheUsage:
    """What the cache folder holds. kinds: subfolder -> bytes."""

    folder: Path
    files: int
    size_bytes: int
    limit_bytes: int
    kinds: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "files": self.files,
            "size_bytes": self.size_bytes,
            "limit_bytes": self.limit_bytes,
            "kinds": dict(self.kinds),
        }


def limit_bytes() -> int:
    """The size limit, from HAQ_CACHE_LIMIT_MB or the default; raises InputError where that is not a number >= 0."""
    text = os.environ.get("HAQ_CACHE_LIMIT_MB", str(DEFAULT_LIMIT_MB))
    try:
        megabytes = float(text)
    except ValueError:
        megabytes = -1.0
    if not 0 <= megabytes < float("inf"):
        raise InputError(
            "not a cache size", where="HAQ_CACHE_LIMIT_MB", got=text, expected="megabytes, for example 4000"
        )
    return int(megabytes * 1e6)


def usage() -> CacheUsage:
    """What the cache holds now."""
    folder = cache_dir()
    kinds: dict[str, int] = {}
    files = _files(folder)
    for path, size, _ in files:
        kind = path.relative_to(folder).parts[0] if path.parent != folder else "other"
        kinds[kind] = kinds.get(kind, 0) + size
    total = sum(size for _, size, _ in files)
    return CacheUsage(folder, len(files), total, limit_bytes(), tuple(sorted(kinds.items())))


def clear() -> CacheUsage:
    """Empty the cache; returns what it held. Everything in it can be computed again."""
    held = usage()
    if held.folder.is_dir():
        for path in held.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return held


def trim() -> int:
    """Delete the files that were written longest ago until the cache is under its limit; returns the bytes freed."""
    files, limit = _files(cache_dir()), limit_bytes()
    total = excess = sum(size for _, size, _ in files)
    for path, size, _ in sorted(files, key=lambda entry: entry[2]):
        if excess <= limit:
            break
        path.unlink(missing_ok=True)
        excess -= size
    return total - excess


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a cache file so that a reader sees all of it or none; a folder that cannot be written is no error."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError:
        return  # a read-only home only costs the time to compute it again


def _files(folder: Path) -> list[tuple[Path, int, float]]:
    """(path, bytes, modification time) of every file; one that vanishes meanwhile is left out."""
    found = []
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            stat = path.lstat()
        except OSError:
            continue
        if path.is_file():
            found.append((path, stat.st_size, stat.st_mtime))
    return found
