"""Keeps what was measured of each piece on each batch, under a key that changes with anything the numbers depend on."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.checkpoints import weights_hash
from haq.nn.task import Inputs, hash_inputs
from haq.resources import cache_dir
from haq.techniques import Stack

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Partial:
    """One piece on one batch, as sums over its samples, so that batches add up.

    divergence: of KL in nats, or of squared errors; scale: what it is divided by, the samples or the sum of squares.
    loss_increase: in nats. share: of the network's multiply-accumulates that had to run.
    """

    divergence: float
    scale: float
    loss_increase: float | None
    samples: int
    share: float


class EffectStore:
    """Partial effects in a file, one line each. It changes as it is used: it fills.

    path: None for memory. A line is in the file when `add` returns; a half-written or damaged one is left out, and what
    it held is measured again. A file that cannot be written costs only that.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = dict(_read(path)) if path is not None else {}
        # A line that was cut off must not swallow the next one.
        self._start = "" if path is None or _ends_with_a_line(path) else "\n"

    def get(self, signature: str, batch: int) -> Partial | None:
        """The partial effect of what has this signature on this batch; None where it is not known."""
        return self._known.get((signature, batch))

    def add(self, signature: str, batch: int, partial: Partial) -> None:
        """Keep it."""
        self._known[signature, batch] = partial
        if self._path is not None:
            line = json.dumps({"signature": signature, "batch": batch, **asdict(partial)})
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"{self._start}{line}\n")
                self._start = ""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What the candidates' numbers depend on beside the code. calibration: all batches that quantizers are made from;
    batches and labels: those that effects are measured on; measure: what divergences are."""

    model: nn.Module
    calibration: Sequence[Inputs]
    stack: Stack
    observer: str
    batches: Sequence[Inputs]
    labels: Sequence[Tensor]
    measure: str


def kept_effects(recipe: Recipe) -> EffectStore:
    """The store in the cache folder for this recipe, or one in memory where a module's code is in no file."""
    key = effects_key(recipe)
    return EffectStore(None if key is None else cache_dir() / "sensitivity" / f"{key}.jsonl")


def effects_key(recipe: Recipe) -> str | None:
    """32 hex digits over weights, structure, data, quantizer settings and code; None where code is in no file.

    Code: all of haq.nn, the files of the model's own module classes, and torch's version. What those files import from
    elsewhere is not followed.
    """
    sources = _sources(recipe.model)
    if sources is None:
        return None
    digest = hashlib.sha256(f"torch=={torch.__version__}\n".encode())
    for path in (_PACKAGE / "precision.py", *sorted((_PACKAGE / "nn").rglob("*.py")), *sources):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    for part in (
        repr(recipe.model),
        weights_hash(recipe.model),
        hash_inputs(recipe.calibration),
        str(recipe.stack),
        recipe.observer,
        hash_inputs(recipe.batches),
        hash_inputs([(labels,) for labels in recipe.labels]),
        recipe.measure,
    ):
        digest.update(f"\n{len(part)} {part}".encode())
    return digest.hexdigest()[:32]


def _sources(model: nn.Module) -> tuple[Path, ...] | None:
    """The files that the module classes stand in, torch's left out; None where one stands in no file."""
    found = set()
    for cls in {type(module) for module in model.modules()}:
        if cls.__module__.partition(".")[0] == "torch":
            continue
        try:
            source = inspect.getsourcefile(cls)
        except (TypeError, OSError):
            source = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if source is None or not Path(source).is_file():
            return None
        found.add(Path(source))
    return tuple(sorted(found, key=lambda path: (path.name, str(path))))


def _read(path: Path) -> Iterator[tuple[tuple[str, int], Partial]]:
    for line in _lines(path):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            raw: dict[str, Any] = json.loads(line)
            yield (raw.pop("signature"), raw.pop("batch")), Partial(**raw)


def _lines(path: Path) -> Iterable[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except OSError:
        return ()


def _ends_with_a_line(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return True
    return not content or content.endswith(b"\n")
