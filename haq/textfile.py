"""Writes files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from haq.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file whole, so that a reader or a kill never sees half of it."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(draft, path)


def write_file(path: Path, content: str | bytes, what: str) -> None:
    """Write a file that the user named, its folder if need be; raises InputError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise InputError(
            f"cannot write the {what}", where=str(path), got=error.strerror, expected="a writable path"
        ) from None


def check_writable(path: Path, where: str) -> None:
    """Raise InputError for a path that no file can be written to, before any work is done for it. where: the flag."""
    if path.is_dir():
        raise InputError("the path is a folder", where=where, got=str(path), expected="a file that can be written")
    folder = next(parent for parent in (path.parent, *path.parent.parents) if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            "cannot write there", where=where, got=f"{path}: {error.strerror}", expected="a folder to write to"
        ) from None
