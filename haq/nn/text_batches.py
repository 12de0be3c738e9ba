"""Texts to train on: shuffled batches of about one length, and a user's own table of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from haq.errors import InputError
from haq.nn.models.bert import class_names, read_config
from haq.nn.texts import (
    Row,
    class_of,
    encode,
    load_tokenizer,
    longest,
    padded,
    padding_of,
    read_table,
    tokenizer_folder,
)
from haq.spacefile import SpaceFile

POOL = 64
"""Training batches are cut from so many batches' worth of shuffled texts, sorted by length: little padding."""
BATCH = 32


@dataclass(frozen=True, eq=False)
class TextBatches:
    """Shuffled training batches of texts of about one length.

    tokens: token numbers per text. targets: (n,) class numbers, or (n, classes) chances.
    """

    tokens: Sequence[Sequence[int]]
    targets: Tensor
    batch_size: int
    pad: int

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        shuffled = torch.randperm(len(self.tokens), generator=generator)
        parts: list[list[int]] = []
        for pool in torch.split(shuffled, self.batch_size * POOL):
            by_length = sorted(pool.tolist(), key=lambda row: len(self.tokens[row]))
            parts += [by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)]
        for i in torch.randperm(len(parts), generator=generator).tolist():
            batch = padded([self.tokens[row] for row in parts[i]], np.zeros(len(parts[i])), pad=self.pad)
            assert isinstance(batch.inputs, dict), "texts go in by name"
            yield batch.inputs, self.targets[parts[i]]


def text_batches(space: SpaceFile, train: Path, data: Path, weights: Path | None) -> TextBatches:
    """The user's texts to train on, for the model in the Hugging Face folder `weights`; files as for the task."""
    folder = tokenizer_folder(weights)
    return labelled_batches(train, data, load_tokenizer(folder), class_names(read_config(folder)), longest(space))


def labelled_batches(
    train: Path, data: Path, tokenizer: Tokenizer, classes: Sequence[str], longest: int
) -> TextBatches:
    """A `text`, `label` file as training batches; raises InputError on a bad row, and on a text that is in `data`."""
    rows = read_table(train, ("text", "label"), where="--train-data")
    if not rows:
        raise InputError("no texts to train on", where=str(train), got="0 rows", expected="rows below the header")
    _check_apart(rows, train, data)
    labels = torch.tensor([class_of(row, classes, train) for row in rows])
    tokens = encode(tokenizer, [row.values[0] for row in rows], longest)
    return TextBatches(tokens, labels, BATCH, padding_of(tokenizer))


def _check_apart(rows: Sequence[Row], train: Path, data: Path) -> None:
    """Raise InputError on a text that accuracy is measured on: it would be remembered, not understood."""
    measured = {row.values[0]: row.number for row in read_table(data, ("text", "label"))}
    for row in rows:
        if row.values[0] in measured:
            raise InputError(
                "a text to train on is also one that accuracy is measured on", where=f"{train}, line {row.number}",
                got=f"line {measured[row.values[0]]} of {data}", expected="other texts",
            )  # fmt: skip
