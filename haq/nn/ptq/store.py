"""Keeps tensors under content hashes: in memory, or memory-mapped in a folder that every later run shares."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from haq import diskcache

Tensors = dict[str, Tensor]


class Store:
    """Tensors by key. It changes as it is used: it fills.

    folder: where they are kept; what is in there is mapped, not read, so that it takes room in memory only while it is
    used and the system needs the room for nothing else. None keeps them in memory. A folder that cannot be written, or
    a damaged file, costs only the time to make its content again.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Tensors] = {}
        self._wrote = False

    def get(self, key: str) -> Tensors | None:
        """The tensors under the key; None if there are none."""
        if key not in self._held and self._folder is not None:
            found = _mapped(self._path(key))
            if found is not None:
                self._held[key] = found
        return self._held.get(key)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> Tensors:
        """Keep the tensors; returns them as they are kept."""
        held = dict(tensors)
        if self._folder is not None and all(tensor.device.type == "cpu" for tensor in held.values()):
            with contextlib.suppress(OSError):
                _write(self._path(key), held)
                self._wrote = True
                held = _mapped(self._path(key)) or held
        self._held[key] = held
        return held

    def trim(self) -> None:
        """Keep the cache folder under its limit, if something was written since the last time."""
        if self._wrote:
            diskcache.trim()
            self._wrote = False

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.pt"


def _mapped(path: Path) -> Tensors | None:
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = {str(name): tensor for name, tensor in found.items()}
    except Exception:  # damage shows as any error at all; the remedy is the same
        return None
    with contextlib.suppress(OSError):  # a read-only cache is still good to read
        os.utime(path)  # used lately: the cache's limit takes the oldest first
    return tensors


def _write(path: Path, tensors: Tensors) -> None:
    """Write beside the file and rename, so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
