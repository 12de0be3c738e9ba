"""Reads what a network was served: a user's data as a space reads them, or a file of arrays; labels are not needed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from haq.errors import InputError
from haq.nn.task import CallableTask, ClassificationTask, Inputs, Task, forward
from haq.references import resolve
from haq.spacefile import InputSpec, SpaceFile

ARRAYS = (".npz", ".npy", ".safetensors")
BATCH = 32
Array = NDArray[np.generic]
Show = Callable[[nn.Module], None]
"""Runs a model on all of the data."""


def served_data(space: SpaceFile, data: Path, weights: Path | None) -> Show:
    """What runs a model on the user's data, opened but not yet read whole.

    data: a `.npz`, `.npy` or `.safetensors` file with an array per input, samples along the first axis, prepared as the
    network takes them; else what the space's `served` reads (images in a folder, texts in a table, without labels), or
    its `from_path`. Raises InputError on anything absent, empty, not finite or of another shape, naming the right one.
    """
    if not data.exists():
        raise InputError("data do not exist", where="--data", got=str(data), expected="a file or folder")
    if data.suffix.lower() in ARRAYS:
        arrays = _checked(_arrays(data, space.model.inputs), space.model.inputs, data)
        return lambda model: _run(model, _batches(arrays, space.model.inputs))
    reference = space.data.served or space.data.from_path
    if reference is None:
        raise InputError(
            "the space reads no other data than files of arrays", where=f"--data {data}",
            expected=f"one of {', '.join(ARRAYS)} with {described(space.model.inputs)}",
        )  # fmt: skip
    read = resolve(reference, space.path.parent, space.extras, where=f"search space {space.name!r}")
    found = read(space, data, weights)
    if space.data.served is not None:
        return lambda model: _run(model, found)
    return lambda model: _run_task(model, found)


def described(inputs: tuple[InputSpec, ...]) -> str:
    """The inputs as a user may write them: `input_ids of (samples, 128) int64`."""
    parts = []
    for number, spec in enumerate(inputs):
        name = spec.name or ("an array" if len(inputs) == 1 else f"input_{number}")
        axes = ["samples", *map(str, spec.shape)]
        if spec.dtype == "int64":
            axes[-1] = f"up to {spec.longest or spec.shape[-1]}"
        parts.append(f"{name} of ({', '.join(axes)}) {spec.dtype}")
    return " and ".join(parts)


def _run(model: nn.Module, batches: Iterator[Inputs]) -> None:
    with torch.inference_mode():
        for inputs in batches:
            forward(model, inputs)


def _run_task(model: nn.Module, task: Task) -> None:
    """All samples of a task: those that it would calibrate on, search on and validate on."""
    _run(model, iter(task.calibration()))
    if isinstance(task, ClassificationTask):
        for split in ("search", "validation"):
            _run(model, (batch.inputs for batch in task.splits.get(split, ())))
        return
    task.scores(model, "search")
    if not isinstance(task, CallableTask) or task.validate is not None:
        task.scores(model, "validation")


def _arrays(file: Path, inputs: tuple[InputSpec, ...]) -> dict[str, Array]:
    """Name -> array, under the names of the inputs (`input_0`, ... where they have none)."""
    names = [spec.name or f"input_{number}" for number, spec in enumerate(inputs)]
    try:
        if file.suffix.lower() == ".safetensors":
            found: dict[str, Array] = dict(load_file(file))
        else:
            opened = np.load(file, allow_pickle=False)
            found = dict(opened) if isinstance(opened, np.lib.npyio.NpzFile) else {"": opened}
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(
            "the file cannot be read", where=str(file), got=str(error)[:100], expected=described(inputs)
        ) from None
    if len(inputs) == 1 and len(found) == 1:
        return {names[0]: next(iter(found.values()))}  # whatever its name
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"no array {missing[0]!r}", where=str(file), got=", ".join(sorted(found)) or "no arrays",
            expected=described(inputs),
        )  # fmt: skip
    return {name: found[name] for name in names}


def _checked(arrays: dict[str, Array], inputs: tuple[InputSpec, ...], file: Path) -> dict[str, Array]:
    for spec, (name, array) in zip(inputs, arrays.items(), strict=True):
        where, got = f"{file}: {name}", f"{array.shape} {array.dtype}"
        expected, shape = described((spec,)), array.shape[1:]
        is_text = spec.dtype == "int64"
        longest = spec.longest or spec.shape[-1]
        fits = shape == spec.shape or (
            is_text and len(shape) == len(spec.shape) and shape[:-1] == spec.shape[:-1] and 0 < shape[-1] <= longest
        )
        if not fits:
            raise InputError("an array of another shape", where=where, got=got, expected=expected)
        if not np.issubdtype(array.dtype, np.integer if is_text else np.floating):
            raise InputError(
                "an array of another type", where=where, got=got, expected=expected,
                way_out="" if is_text else "as the network takes it, so normalized",
            )  # fmt: skip
        if not len(array):
            raise InputError("no samples", where=where, got=got, expected=expected)
        if len(array) != len(next(iter(arrays.values()))):
            raise InputError("inputs of different numbers of samples", where=where, got=got, expected="as many of each")
        if not is_text and not np.isfinite(array.astype(np.float64)).all():
            bad = array[~np.isfinite(array.astype(np.float64))]
            raise InputError("the data are not finite", where=where, got=float(bad[0]), expected="finite numbers")
        if is_text and (array.min() < 0 or (spec.high is not None and array.max() >= spec.high)):
            highest = "" if spec.high is None else f" to {spec.high - 1}"
            raise InputError(
                "a number out of range", where=where, got=f"{array.min()} to {array.max()}", expected=f"0{highest}"
            )
    return arrays


def _batches(arrays: Mapping[str, Array], inputs: tuple[InputSpec, ...]) -> Iterator[Inputs]:
    tensors = {
        name: torch.from_numpy(array.astype(np.int64 if spec.dtype == "int64" else np.float32))
        for spec, (name, array) in zip(inputs, arrays.items(), strict=True)
    }
    for start in range(0, len(next(iter(tensors.values()))), BATCH):
        part = {name: tensor[start : start + BATCH] for name, tensor in tensors.items()}
        yield part if inputs[0].name else tuple(part.values())
