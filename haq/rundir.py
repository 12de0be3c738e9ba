"""A run directory: what was asked (`run.json`), the history, and a lock against a second writer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.errors import InputError
from haq.history import SEARCH, History, HistoryWriter, read_history
from haq.quality import MainMetric, main_metric
from haq.textfile import write_atomically

SCHEMA = "haq.run/v1"
RUN_FILE, HISTORY_FILE, FRONT_FILE, CONFIG_FOLDER, LOCK_FILE = (
    "run.json",
    "history.jsonl",
    "front.csv",
    "configs",
    "lock",
)
DEPLOYED_FOLDER = "deployments"
"""The configs whose artifacts were measured: they stay when a point leaves the front."""
WORKLOAD_FILE, SENSITIVITY_FILE = "workload.json", "sensitivity.json"
"""What other targets and limits are answered from, with no model at hand."""

IDENTITY = ("spec", "search", "provenance", "space")
"""The parts of run.json that say which search it is; the same search may go on, another one is refused."""

BUDGET_KEYS = frozenset({"trials", "timeout_s", "storage", "until_converged"})
"""Keys anywhere in these parts that only say how long or where, so a finished run may be asked for more trials."""


@dataclass(frozen=True)
class RunRequest:
    """What `run.json` holds: plain JSON data.

    spec: the resolved search spec. search: sampler and seed. provenance: `model`, `weights_hash`, `data_hash`,
    `metric`, `direction` of one that is minimized, and whatever else identifies the input. targets: name -> batch,
    title, and how far its latency can be trusted. space: `groups`, name -> layers and bits.
    """

    spec: Mapping[str, Any]
    search: Mapping[str, Any]
    provenance: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    space: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """With the versions and the machine of the moment."""
        raw = {
            "schema": SCHEMA,
            "spec": self.spec,
            "search": self.search,
            "provenance": self.provenance,
            "targets": self.targets,
            "space": self.space,
            "versions": versions(),
            "machine": machine(),
        }
        return dict(json.loads(json.dumps(raw)))  # tuples become the lists that a reader gets


@dataclass(frozen=True)
class Run:
    """A run as it was found on disk. info: the content of `run.json`."""

    path: Path
    info: Mapping[str, Any]
    history: History

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.info["targets"])

    @property
    def metric(self) -> MainMetric:
        """What drives the search; a run of before it could be chosen maximizes."""
        about = self.info["provenance"]
        measured = self.history.baseline.measurements[SEARCH] if self.history.baseline else None
        name = (measured.metric if measured else None) or about.get("metric", "accuracy")
        return main_metric(name, about.get("direction", "maximize"), measured.accuracy if measured else None)


@dataclass(frozen=True)
class OpenRun:
    """A run directory that this process alone writes to."""

    run: Run
    writer: HistoryWriter


def read_run(path: Path) -> Run:
    """The run in a directory, finished, stopped or under way; raises InputError when there is none."""
    try:
        info = json.loads((path / RUN_FILE).read_text())
    except OSError:
        raise InputError(
            "not a run directory",
            where=str(path),
            expected=f"a folder with {RUN_FILE}",
            way_out="make one with `haq search ... --out DIR`",
        ) from None
    except ValueError:
        info = None
    if not isinstance(info, dict) or info.get("schema") != SCHEMA:
        raise InputError("run file is damaged or of another version", where=str(path / RUN_FILE), expected=SCHEMA)
    return Run(path, info, read_history(path / HISTORY_FILE))


@contextmanager
def open_run(path: Path, request: RunRequest) -> Iterator[OpenRun]:
    """Create the run directory, or go on with the same search in it, holding its lock.

    Raises InputError when it cannot be written, holds other files, another search, or another process writes to it.
    """
    asked = request.to_json()
    existing = path.is_dir() and (path / RUN_FILE).is_file()
    if path.is_dir() and not existing and (other := sorted(p.name for p in path.iterdir() if p.name != LOCK_FILE)):
        raise InputError(
            "folder holds files that are no run of haq",
            where=f"--out {path}",
            got=", ".join(other[:3]),
            expected="a new or empty folder, or a run directory",
        )
    with _locked(path, f"--out {path}"):
        if existing:
            found = read_run(path)
            _check_same_search(found, asked)
            # Only the budget can differ; versions and machine stay those of the start.
            asked = {**found.info, **{part: asked[part] for part in IDENTITY}}
        write_atomically(path / RUN_FILE, json.dumps(asked, indent=2) + "\n")
        with _writer(path) as history:
            yield OpenRun(read_run(path), history)


@contextmanager
def continued_run(path: Path) -> Iterator[OpenRun]:
    """The run in a directory, open for records that are no part of its search, holding its lock.

    Raises InputError when there is none, when it cannot be written, or when another process writes to it.
    """
    run = read_run(path)
    with _locked(path, str(path)), _writer(path) as history:
        yield OpenRun(run, history)


@contextmanager
def _locked(path: Path, where: str) -> Iterator[None]:
    """Hold the lock of a run directory, which is made where there is none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            "cannot write the run directory", where=where, got=error.strerror,
            expected="a folder that you may write to",
        ) from None  # fmt: skip
    try:
        _lock(handle, path)
        yield
    finally:
        os.close(handle)  # closing releases the lock, also when the process is killed


@contextmanager
def _writer(path: Path) -> Iterator[HistoryWriter]:
    history = HistoryWriter(path / HISTORY_FILE)
    try:
        yield history
    finally:
        history.close()


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("haq", "torch", "optuna", "numpy", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an absent package is left out
    return found


def machine() -> dict[str, Any]:
    """Where the run was made."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}


def identity(info: Mapping[str, Any]) -> str:
    """16 hex digits that name the search of a `run.json`, whatever its budget."""
    flat = {key: value for part in IDENTITY for key, value in _flat(info[part], part).items() if not _is_budget(key)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def _is_budget(key: str) -> bool:
    return key.rpartition(".")[2] in BUDGET_KEYS


def _check_same_search(run: Run, asked: Mapping[str, Any]) -> None:
    """Raise InputError that names the first key in which the directory's search differs from the one asked."""
    for part in IDENTITY:
        there, here = _flat(run.info.get(part, {}), part), _flat(asked[part], part)
        for key in [*here, *(k for k in there if k not in here)]:
            if not _is_budget(key) and there.get(key) != here.get(key):
                raise InputError(
                    f"run directory holds a different search: {key} is {there.get(key, 'not set')!r} there",
                    where=f"--out {run.path}",
                    got=here.get(key, "not set"),
                    expected="the same value, to go on with it",
                    way_out="choose another --out",
                )


def _flat(value: Any, key: str) -> dict[str, Any]:
    """Nested tables as dotted keys."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{key}.{name}").items()}


def _lock(handle: int, path: Path) -> None:
    """Take the lock of an open lock file; raises InputError when another process holds it."""
    try:
        if os.name == "nt":  # pragma: no cover
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(
            "another process is writing to this run directory",
            where=f"--out {path}",
            expected="one writer",
            way_out="wait for it to end, or choose another --out",
        ) from None
