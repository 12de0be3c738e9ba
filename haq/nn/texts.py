"""Texts as a classification task: reads a table of them, and prepares padded batches with a model's own tokenizer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from haq.errors import InputError
from haq.nn.models.bert import class_names, read_config
from haq.nn.task import Batch, ClassificationTask, Inputs, hash_inputs, split_indices
from haq.spacefile import SpaceFile

SPLIT_SEED = 0
MOST_CALIBRATION = 256
FEWEST_TEXTS = 10
BATCH = 64


@dataclass(frozen=True)
class Row:
    """One line of a table. number: its line in the file, from 1, as editors count. values: the columns asked for."""

    number: int
    values: tuple[str, ...]


def text_task(space: SpaceFile, data: Path, weights: Path | None) -> ClassificationTask:
    """The user's texts as a task for the model in the Hugging Face folder `weights`.

    data: a tab-separated file with the columns `text` and `label`; a label is a class number or one of the model's
    label names. Raises InputError, with the line number, on a row that does not fit.
    """
    folder = tokenizer_folder(weights)
    return labelled_task(data, load_tokenizer(folder), class_names(read_config(folder)), longest(space))


def served_texts(space: SpaceFile, data: Path, weights: Path | None) -> list[Inputs]:
    """Batches of the texts in a tab-separated file with a column `text`; no labels are needed."""
    return unlabelled(data, load_tokenizer(tokenizer_folder(weights)), longest(space))


def unlabelled(path: Path, tokenizer: Tokenizer, longest: int) -> list[Inputs]:
    """The `text` column of a file as batches; raises InputError on no texts."""
    rows = read_table(path, ("text",))
    if not rows:
        raise InputError("no texts", where=str(path), got="0 rows", expected="rows below the header")
    tokens = encode(tokenizer, [row.values[0] for row in rows], longest)
    made = batches(tokens, np.zeros(len(rows), dtype=np.int64), range(len(rows)), pad=padding_of(tokenizer))
    return [batch.inputs for batch in made]


def tokenizer_folder(weights: Path | None) -> Path:
    """The folder that `--weights` names; raises InputError where it can hold no tokenizer."""
    if weights is None or not weights.is_dir():
        raise InputError(
            "texts need the tokenizer that the model was trained with",
            where="--weights",
            got=None if weights is None else str(weights),
            expected="a Hugging Face folder with config.json, weights, and tokenizer.json or vocab.txt",
        )
    return weights


def labelled_task(path: Path, tokenizer: Tokenizer, classes: Sequence[str], longest: int) -> ClassificationTask:
    """A `text`, `label` file as a task: calibration a fifth of it (at most 256), then search and validation in halves.

    The split is random with a fixed seed. Raises InputError on a bad row and on fewer than 10 texts.
    """
    rows = read_table(path, ("text", "label"))
    if len(rows) < FEWEST_TEXTS:
        raise InputError(
            "too few texts", where=str(path), got=len(rows), expected=f"at least {FEWEST_TEXTS} rows below the header"
        )
    labels = np.array([class_of(row, classes, path) for row in rows])
    calibration = min(MOST_CALIBRATION, len(rows) // 5)
    search = (len(rows) - calibration) // 2
    sizes = {"calibration": calibration, "search": search, "validation": len(rows) - calibration - search}
    tokens = encode(tokenizer, [row.values[0] for row in rows], longest)
    return task_of(tokens, labels, split_indices(len(rows), sizes, SPLIT_SEED), pad=padding_of(tokenizer))


def task_of(
    tokens: Sequence[Sequence[int]], labels: np.ndarray, splits: Mapping[str, Sequence[int]], *, pad: int
) -> ClassificationTask:
    """The task over tokenized texts. splits: calibration, search and validation (others are ignored) -> row numbers."""
    made = {name: batches(tokens, labels, splits[name], pad=pad) for name in ("calibration", "search", "validation")}
    content = [{**_named(batch), "labels": batch.labels} for split in made.values() for batch in split]
    return ClassificationTask(
        splits={name: made[name] for name in ("search", "validation")},
        calibration_batches=tuple(batch.inputs for batch in made["calibration"]),
        data_hash=hash_inputs(content),
        calibration_labels=tuple(batch.labels for batch in made["calibration"]),
    )


def batches(
    tokens: Sequence[Sequence[int]], labels: np.ndarray, rows: Sequence[int], *, pad: int, size: int = BATCH
) -> tuple[Batch, ...]:
    """The rows as batches of texts of about one length, so that little of the work goes into padding.

    The order is fixed, and the batches are mixed: the first ones are no shorter than the others.
    """
    by_length = sorted(rows, key=lambda row: (len(tokens[row]), row))
    parts = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    mixed = np.random.default_rng(SPLIT_SEED).permutation(len(parts))
    return tuple(padded([tokens[row] for row in parts[i]], labels[parts[i]], pad=pad) for i in mixed)


def padded(tokens: Sequence[Sequence[int]], labels: np.ndarray, *, pad: int) -> Batch:
    """One batch as wide as its longest text: input_ids and attention_mask of (n, tokens), labels of (n,)."""
    shape = (len(tokens), max(map(len, tokens)))
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    for i, text in enumerate(tokens):
        ids[i, : len(text)] = torch.tensor(text)
        mask[i, : len(text)] = 1
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.from_numpy(np.asarray(labels)))


def encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Token numbers per text, special tokens included, cut to `longest`."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    # One by one: encode_batch starts threads, about which the library warns when the process later forks workers.
    return [tokenizer.encode(text).ids for text in texts]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face folder; raises InputError if there is none or it cannot be read."""
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.txt").is_file():
            config = folder / "tokenizer_config.json"
            options = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            lower = bool(options.get("do_lower_case", True))
            return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)._tokenizer
    except Exception as error:  # the library raises a bare Exception on a damaged file
        raise InputError("the tokenizer cannot be read", where=str(folder), got=str(error)[:120]) from error
    raise InputError("the folder holds no tokenizer", where=str(folder), expected="tokenizer.json or vocab.txt")


def padding_of(tokenizer: Tokenizer) -> int:
    """The number of the padding token; 0, which the mask hides anyway, where the tokenizer has none."""
    found = tokenizer.token_to_id("[PAD]")
    return 0 if found is None else int(found)


def longest(space: SpaceFile) -> int:
    """How many tokens a text may have: the last axis of the space's first input."""
    return space.model.inputs[0].shape[-1]


def read_table(path: Path, columns: Sequence[str], *, where: str = "--data") -> list[Row]:
    """The rows of a tab-separated file (UTF-8, .gz or not) whose header names at least these columns.

    Quotes are text. Empty lines are skipped; raises InputError with the line number on any other line that does not
    fit the header, and on an empty cell.
    """
    if not path.is_file():
        raise InputError("not a table of texts", where=where, got=str(path), expected="a tab-separated file")
    lines = _lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    if missing := [column for column in columns if column not in header]:
        raise InputError(
            f"no column {missing[0]!r}",
            where=f"{path}, line 1",
            got=", ".join(header)[:120],
            expected=f"a header with {' and '.join(columns)}, separated by tabs",
        )
    places = [header.index(column) for column in columns]
    rows = []
    for number, line in lines:
        if not line.strip():
            continue
        cells = line.split("\t")
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise InputError("wrong number of columns", where=where, got=len(cells), expected=str(len(header)))
        values = tuple(cells[place].strip() for place in places)
        if "" in values:
            raise InputError(f"empty {columns[values.index('')]}", where=where, expected="some text")
        rows.append(Row(number, values))
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of the file; raises InputError where it is no UTF-8 text."""
    number = 0
    try:
        with path.open("rb") as raw, _text(raw, packed=path.suffix == ".gz") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(
            "not a text file", where=f"{path}, after line {number}", got=str(error)[:100], expected="UTF-8"
        ) from None


def _text(raw: BinaryIO, *, packed: bool) -> TextIOWrapper:
    return TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8-sig")


def class_of(row: Row, classes: Sequence[str], path: Path) -> int:
    """The class number that a row's second value names; raises InputError with the line for an unknown one."""
    label = row.values[1]
    if label in classes:
        return classes.index(label)
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    raise InputError(
        "unknown label",
        where=f"{path}, line {row.number}",
        got=label,
        expected=f"0 to {len(classes) - 1}, or one of {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}",
    )


def _named(batch: Batch) -> dict[str, torch.Tensor]:
    assert isinstance(batch.inputs, dict), "texts go in by name"
    return batch.inputs
