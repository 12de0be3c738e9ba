"""The checkpoint of a finetuning run: everything that the next step depends on, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from haq.errors import InputError
from haq.nn.tensorfile import read_tensors, write_tensors
from haq.nn.tuned import Tuned, tensors_of, tuned_from
from haq.precision import Assignment
from haq.workload import Workload

SCHEMA = "haq.tuning/v1"


@dataclass(frozen=True)
class Position:
    """How far a run is. epoch: whole epochs done. step, loss: steps done in the next one, and the sum of their losses.

    elapsed_s: of training and judging, up to the last step. before_s: the part of it before this process. best_epoch,
    best_accuracy: of the numbers kept so far; epoch 0 is the start.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    elapsed_s: float = 0.0
    before_s: float = 0.0
    best_epoch: int = 0
    best_accuracy: float = 0.0


@dataclass(frozen=True, eq=False)
class Progress:
    """A run on its way. student: the trainable's state dict. optimizer: parameter number -> its state.

    epoch_start: the generator's state before the batches of the epoch under way were drawn.
    """

    at: Position
    student: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    epoch_start: Tensor
    best: Tuned


def save_checkpoint(path: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    """Replace the checkpoint. identity: what names the run, plain JSON data."""
    tensors = {f"student/{name}": value for name, value in progress.student.items()}
    for number, state in progress.optimizer.items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in state.items()}
    tensors |= {f"best/{name}": value for name, value in tensors_of(progress.best).items()}
    tensors["epoch_start"] = progress.epoch_start
    about = {
        "schema": SCHEMA,
        "identity": dict(identity),
        "at": asdict(progress.at),
        "functional": sorted(progress.best.functional),
    }
    write_tensors(path, tensors, about)


def load_checkpoint(
    path: Path, identity: Mapping[str, Any], workload: Workload, executed: Assignment
) -> Progress | None:
    """The run in a checkpoint, or None where there is none; raises InputError if it is of another run."""
    if not path.exists():
        return None
    about, tensors = read_tensors(path, SCHEMA)
    there = about["identity"]
    for key in [*identity, *(key for key in there if key not in identity)]:
        if there.get(key) != identity.get(key):
            raise InputError(
                f"a checkpoint of another run is in the way: {key} is {there.get(key, 'not set')!r} there",
                where=str(path), got=identity.get(key, "not set"), expected="the same value, to go on with it",
                way_out="choose another --out, or delete the checkpoint to start anew",
            )  # fmt: skip
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer/", tensors).items():
        number, _, what = name.partition("/")
        optimizer.setdefault(int(number), {})[what] = value
    best = tuned_from(_under("best/", tensors), executed, workload, frozenset(about["functional"]))
    return Progress(Position(**about["at"]), _under("student/", tensors), optimizer, tensors["epoch_start"], best)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
