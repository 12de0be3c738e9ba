"""Traced workloads on disk, so that pricing a shipped network a second time needs no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

from haq import diskcache
from haq.resources import cache_dir, shipped
from haq.spacefile import FOLDER, SpaceFile
from haq.workload import Workload

_PACKAGE = Path(__file__).resolve().parent


def workload_of(space: SpaceFile, model: str | None = None) -> Workload:
    """The space's network as a workload, traced on the meta device with batch norms folded, or read from the cache.

    model: the user's own `package.module:factory` in place of the space's.
    Only shipped spaces are cached: all the code they depend on is known and part of the key. A user's factory may
    import anything, and a stale trace would be a silently wrong price.
    """
    is_shipped = model is None and space.path.parent in (shipped(FOLDER).resolve(), shipped(FOLDER))
    path = cache_dir() / "traces" / f"{space.name}-{trace_key(space)}.json"
    if is_shipped and path.is_file():
        try:
            return Workload.from_json(path.read_text())
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # a damaged cache file costs a new trace, nothing else
    workload = _trace(space, model)
    if is_shipped:
        diskcache.write_atomically(path, workload.to_json())
        diskcache.trim()
    return workload


def trace_key(space: SpaceFile) -> str:
    """16 hex digits over all that a shipped trace depends on: its model table, haq's code, the packages' versions."""
    digest = hashlib.sha256(json.dumps(space.model.model_dump(mode="json"), sort_keys=True).encode())
    for package in ("torch", "transformers", "efficientnet-lite-pytorch"):
        try:
            digest.update(f"\n{package}=={importlib.metadata.version(package)}".encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(f"\n{package} absent".encode())
    for path in _code():
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _code() -> Iterator[Path]:
    """The files whose content shapes a trace."""
    yield _PACKAGE / "workload.py"
    yield from sorted((_PACKAGE / "nn").rglob("*.py"))
    yield from sorted(shipped(FOLDER).glob("*.py"))


def _trace(space: SpaceFile, model: str | None) -> Workload:
    # torch loads here, and only when nothing is cached
    from haq.nn.bundle import load_bundle
    from haq.nn.fold import fold_batch_norm
    from haq.nn.trace import trace

    bundle = load_bundle(space, model=model, with_data=False)
    return trace(fold_batch_norm(bundle.model, bundle.example), bundle.example, name=bundle.name)
