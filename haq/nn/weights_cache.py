"""Keeps weights that haq trained itself in the user's cache folder, under a key of everything that made them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from filelock import FileLock  # comes with torch
from torch import Tensor

from haq import diskcache
from haq.nn.checkpoints import StateDict, state_hash
from haq.resources import cache_dir

log = logging.getLogger(__name__)


def cache_path(name: str, made_of: Mapping[str, str]) -> Path:
    """Where the weights called `name`, made of these ingredients (recipe, data hash, ...), are kept."""
    text = json.dumps({"name": name, **made_of}, sort_keys=True)
    return cache_dir() / "weights" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"


def cached_weights(name: str, made_of: Mapping[str, str], make: Callable[[], Mapping[str, Tensor]]) -> StateDict:
    """The weights from the cache, or out of `make`, which are then kept.

    A file whose content does not match the hash written in it is made again. Of several processes one makes them, the
    others wait for it. A folder that cannot be written costs only the time to make the weights the next time.
    """
    path = cache_path(name, made_of)
    found = _read(path)
    if found is not None:
        return found
    with _alone(path):
        found = _read(path)
        return found if found is not None else _made(name, path, make)


def _made(name: str, path: Path, make: Callable[[], Mapping[str, Tensor]]) -> StateDict:
    log.info("%s: no weights in the cache, making them", name)
    state = {key: value.detach().clone() for key, value in make().items()}
    try:
        _write(path, state)
    except OSError as error:
        log.warning("%s: weights are not kept: %s", name, error)
    return state


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the file's lock; where none can be written there is nothing to wait for either."""
    lock = FileLock(cache_dir() / "locks" / f"{path.stem}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> StateDict | None:
    if not path.is_file():
        return None
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        state: StateDict = dict(raw["state"])
        intact = raw["sha256"] == state_hash(state)
    except Exception as error:  # damage shows as any error at all; the remedy is the same
        log.warning("%s cannot be read (%s), making it again", path, type(error).__name__)
        return None
    if not intact:
        log.warning("%s is damaged, making it again", path)
        return None
    with contextlib.suppress(OSError):  # a read-only cache is still good to read
        os.utime(path)  # used lately: the cache's limit takes the oldest first
    return state


def _write(path: Path, state: StateDict) -> None:
    """Write to a temporary file beside it and rename, so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"state": state, "sha256": state_hash(state)}, file)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    diskcache.trim()
