"""Finds what a space's network is finetuned on: the training split of its task, or the user's own data."""

from __future__ import annotations

from pathlib import Path

from haq.errors import InputError
from haq.nn.training import BatchSource
from haq.references import missing_module, resolve
from haq.spacefile import SpaceFile


def training_batches(space: SpaceFile, train: Path | None, data: Path | None, weights: Path | None) -> BatchSource:
    """Batches that hold nothing of what accuracy is measured on.

    train: the user's own training data; needed where `data`, which accuracy is measured on, is the user's. Raises
    InputError, with the way out, when a space has neither.
    """
    where = f"search space {space.name!r}"
    if train is not None:
        if not train.exists():
            raise InputError("training data do not exist", where="--train-data", got=str(train))
        if data is None:
            raise InputError(
                "training data of the user's need the data to measure on beside them", where="--train-data",
                expected="--data too, with other samples",
            )  # fmt: skip
        if space.data.train_from_path is None:
            raise InputError(
                "the space reads no training data of the user's", where=where, got=f"--train-data {train}",
                expected="train_from_path under [data] in its file",
            )  # fmt: skip
        return _called(space, space.data.train_from_path, (space, train, data, weights))
    if data is not None:
        raise InputError(
            "nothing to train on", where=where,
            expected="--train-data, a folder or file like --data with other samples"
            if space.data.train_from_path
            else "train_from_path under [data] in its file, and --train-data",
        )  # fmt: skip
    if space.data.train is None:
        raise InputError(
            "the space has no training data of its own", where=where,
            expected="train under [data] in its file, or --data and --train-data",
        )  # fmt: skip
    return _called(space, space.data.train, (space,))


def _called(space: SpaceFile, reference: str, arguments: tuple[object, ...]) -> BatchSource:
    where = f"search space {space.name!r}"
    try:
        source: BatchSource = resolve(reference, space.path.parent, space.extras, where=where)(*arguments)
    except ModuleNotFoundError as error:
        raise missing_module(error, reference, space.extras, where=where) from error
    if not len(source):
        raise InputError("no training data", where=where, got="0 batches", expected="at least one batch")
    return source
