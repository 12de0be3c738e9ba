"""Reads a search space file: which model to build, on which inputs, with which data and which bit-widths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from haq.errors import InputError
from haq.precision import BIT_WIDTHS
from haq.references import check_reference
from haq.resources import find_toml, shipped_names
from haq.validation import load_toml, validate

FOLDER = "search_spaces"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Table):
    """One input of the model, per sample: `shape` without the batch axis.

    name: the keyword it is passed by; inputs without a name are passed by position.
    high: integer inputs only, values run from 0 to high - 1 (a vocabulary's size).
    longest: the last axis may not grow beyond it (a table of positions).
    """

    name: str = ""
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"
    high: int | None = Field(default=None, gt=0)
    longest: int | None = Field(default=None, gt=0)

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or min(shape) < 1:
            raise ValueError("every axis must be at least 1")
        return shape


class ModelTable(_Table):
    """How the network is built: `factory(**arguments)` returns an nn.Module.

    factory: may be left to `--model`. trained: the module comes with its weights, so that none are asked for.
    from_folder: `function(folder: Path) -> nn.Module`, the trained model out of a folder that `--weights` names.
    """

    factory: str | None = None
    arguments: dict[str, Any] = {}
    trained: bool = False
    inputs: tuple[InputSpec, ...] = Field(min_length=1)
    from_folder: str | None = None

    @field_validator("factory", "from_folder")
    @classmethod
    def _reference(cls, text: str | None) -> str | None:
        return None if text is None else check_reference(text)

    @field_validator("inputs")
    @classmethod
    def _all_named_or_none(cls, inputs: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
        names = [i.name for i in inputs]
        if any(names) and (not all(names) or len(set(names)) < len(names)):
            raise ValueError("either every input has its own name or none has one")
        return inputs


class DataTable(_Table):
    """Where accuracy comes from.

    task: `function(space: SpaceFile) -> Task`.
    weights: `function(space: SpaceFile, model: nn.Module) -> state dict`, trained for the task; may train the model.
    from_path: `function(space: SpaceFile, data: Path, weights: Path | None) -> Task` over a user's own data.
    served: `function(space: SpaceFile, data: Path, weights: Path | None) -> Iterable[Inputs]`, batches of a user's own
    data without labels, for `haq check`; without it those of `from_path` are taken.
    train: `function(space: SpaceFile) -> BatchSource` over the task's training split, for finetuning.
    train_from_path: `function(space: SpaceFile, train: Path, data: Path, weights: Path | None) -> BatchSource` over a
    user's own data for training, none of which may be in `data`, where accuracy is measured.
    """

    task: str | None = None
    weights: str | None = None
    from_path: str | None = None
    served: str | None = None
    train: str | None = None
    train_from_path: str | None = None

    @field_validator("task", "weights", "from_path", "served", "train", "train_from_path")
    @classmethod
    def _reference(cls, text: str | None) -> str | None:
        return None if text is None else check_reference(text)


class RuleTable(_Table):
    """Layers whose name matches the glob may take these bit-widths; the last rule that matches wins."""

    layers: str = Field(min_length=1)
    bits: tuple[int, ...] = Field(min_length=1)

    @field_validator("bits")
    @classmethod
    def _known(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := sorted(set(bits) - set(BIT_WIDTHS)):
            raise ValueError(f"unknown bit-width {unknown[0]}, expected some of {', '.join(map(str, BIT_WIDTHS))}")
        if len(set(bits)) < len(bits):
            raise ValueError("a bit-width is listed twice")
        return tuple(sorted(bits))


class GroupTable(_Table):
    """Layers that must share one bit-width: all that match one of the globs."""

    layers: tuple[str, ...] = Field(min_length=1)


class SpaceFile(_Table):
    """A search space as written in its TOML file; `name` is the file's stem.

    extras: the extras of haq without which the model or its data cannot be built.
    """

    title: str
    source: str
    extras: tuple[str, ...] = ()
    model: ModelTable
    data: DataTable = DataTable()
    rules: tuple[RuleTable, ...] = ()
    groups: tuple[GroupTable, ...] = ()
    _path: Path = PrivateAttr(default=Path("space.toml"))

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self._path

    @property
    def name(self) -> str:
        return self._path.stem


def load_space(name_or_path: str | Path) -> SpaceFile:
    """The shipped space of this name, or the one in the user's TOML file; raises InputError on anything wrong in it."""
    path = find_toml(FOLDER, str(name_or_path), "search space")
    space = validate(SpaceFile, load_toml(path), where=str(path))
    space._path = path
    return space


def space_of_config(raw: Mapping[str, Any], given: str | None, *, where: str) -> SpaceFile:
    """The space of a config's network. given: the user's own, named again.

    Raises InputError on a config whose space haq does not ship and that is not given: a config loads no code.
    """
    model = raw.get("model")
    name = model.get("model") if isinstance(model, dict) else None
    if given is None and name not in shipped_names(FOLDER):
        raise InputError(
            "the config's network came from outside haq", where=where, got=name,
            expected="--space (and --model, --weights, --data) again, as the search had them",
            way_out="nothing is loaded because a config names it",
        )  # fmt: skip
    return load_space(str(name) if given is None else given)


def list_spaces() -> tuple[SpaceFile, ...]:
    """The shipped spaces, by name."""
    return tuple(load_space(name) for name in shipped_names(FOLDER))


def parse_shape(text: str) -> tuple[int, ...]:
    """`"3x160x160"` as (3, 160, 160)."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise InputError(
            "not an input shape", got=text, expected="axes joined by x without the batch, such as 3x224x224"
        )
    return tuple(int(axis) for axis in text.split("x"))


def with_input(space: SpaceFile, shape: str | tuple[int, ...]) -> SpaceFile:
    """The space with its one float input in another shape (`"3x160x160"`); rank and channels stay."""
    wanted = parse_shape(shape) if isinstance(shape, str) else shape
    inputs = space.model.inputs
    if len(inputs) != 1 or inputs[0].dtype != "float32":
        raise InputError(
            "--input does not fit this space",
            where=space.name,
            got="x".join(map(str, wanted)),
            expected="a space with a single float input",
            way_out="token inputs take --seq-len N",
        )
    now = inputs[0].shape
    if len(wanted) != len(now) or (len(now) > 1 and wanted[0] != now[0]) or min(wanted) < 1:
        raise InputError(
            "the input shape does not fit the model",
            where=f"--input of {space.name}",
            got="x".join(map(str, wanted)),
            expected=f"{len(now)} axes" + (f", the first {now[0]}" if len(now) > 1 else ""),
            way_out=f"the space's own is {'x'.join(map(str, now))}",
        )
    return _with_inputs(space, (inputs[0].model_copy(update={"shape": wanted}),))


def with_seq_len(space: SpaceFile, length: int) -> SpaceFile:
    """The space with every token input (int64) cut or stretched to `length` on its last axis."""
    tokens = [i for i in space.model.inputs if i.dtype == "int64"]
    if not tokens:
        raise InputError(
            "--seq-len does not fit this space",
            where=space.name,
            got=length,
            expected="a space with token inputs",
            way_out="image inputs take --input CxHxW",
        )
    longest = min((i.longest for i in tokens if i.longest is not None), default=length)
    if not 1 <= length <= longest:
        bound = "at least 1" if longest == length else f"1 to {longest}"
        raise InputError("sequence length out of range", where=f"--seq-len of {space.name}", got=length, expected=bound)
    return _with_inputs(
        space,
        tuple(
            i.model_copy(update={"shape": (*i.shape[:-1], length)}) if i.dtype == "int64" else i
            for i in space.model.inputs
        ),
    )


def with_size(space: SpaceFile, size: str) -> SpaceFile:
    """The space for another input as text: a number of tokens (`128`) or an image (`3x160x160`); raises InputError."""
    return with_seq_len(space, int(size)) if size.isdigit() else with_input(space, size)


def _with_inputs(space: SpaceFile, inputs: tuple[InputSpec, ...]) -> SpaceFile:
    return space.model_copy(update={"model": space.model.model_copy(update={"inputs": inputs})})
