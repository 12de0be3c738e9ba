"""Writes files whole or not at all."""

from __future__ import annotations

import os
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
