"""Cuts data to fewer samples, spread evenly over it: a search split, or the calibration data of sensitivities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from haq.errors import InputError, lookup
from haq.history import SEARCH
from haq.nn.task import Batch, ClassificationTask, Inputs, Task, batch_size, taken


def cut_search_split(task: Task, samples: int) -> Task:
    """The task with at most `samples` samples in its search split; as `cut_split`."""
    return cut_split(task, SEARCH, samples, where="accuracy.samples")


def cut_split(task: Task, split: str, samples: int, *, where: str) -> Task:
    """The task with at most `samples` samples in a split, always the same ones; other splits stay.

    Raises InputError for a task that measures by itself, since only its owner can cut its data.
    """
    if not isinstance(task, ClassificationTask):
        raise InputError(
            "this task measures by itself, so its samples cannot be cut", where=where, got=samples,
            expected="the key left out", way_out="make the evaluate function use fewer samples",
        )  # fmt: skip
    batches = lookup(task.splits, split, "split")
    total = sum(len(batch.labels) for batch in batches)
    if samples >= total:
        return task
    # Data may be sorted by class, so the first samples would be a biased choice; every total/samples-th is not.
    chosen = torch.tensor([i * total // samples for i in range(samples)])
    cut, offset = [], 0
    for batch in batches:
        rows = chosen[(chosen >= offset) & (chosen < offset + len(batch.labels))] - offset
        offset += len(batch.labels)
        if len(rows):
            cut.append(Batch(taken(batch.inputs, rows), batch.labels[rows]))
    return replace(task, splits={**task.splits, split: tuple(cut)})


def spread_rows(
    batches: Sequence[Inputs], labels: Sequence[Tensor], samples: int, most: int
) -> tuple[tuple[Inputs, ...], tuple[Tensor, ...]]:
    """Every total/samples-th sample, or all, in batches of at most `most` and no larger than the largest given one.

    labels: (n,) for each batch, or none at all; returned likewise. Neighbours of one shape (texts padded alike) are
    put together, since many small batches take longer.
    """
    total = sum(batch_size(batch) for batch in batches)
    chosen = torch.tensor([i * total // samples for i in range(samples)] if samples < total else range(total))
    size = min(most, max(batch_size(batch) for batch in batches))
    runs: list[list[tuple[Inputs, Tensor]]] = []
    offset = 0
    for number, batch in enumerate(batches):
        end = offset + batch_size(batch)
        rows = chosen[(chosen >= offset) & (chosen < end)] - offset
        # Row numbers stand in for labels that are not there, and are dropped at the end.
        part = taken(batch, rows), labels[number][rows] if labels else rows
        offset = end
        if not len(rows):
            continue
        if runs and _shapes(runs[-1][0][0]) == _shapes(part[0]):
            runs[-1].append(part)
        else:
            runs.append([part])
    cut = []
    for run in runs:
        inputs, shown = _joined([part[0] for part in run]), torch.cat([part[1] for part in run])
        cut += [(taken(inputs, rows), shown[rows]) for rows in torch.split(torch.arange(len(shown)), size)]
    return tuple(inputs for inputs, _ in cut), tuple(shown for _, shown in cut) if labels else ()


def _shapes(inputs: Inputs) -> tuple[object, ...]:
    """Names, types and shapes of one sample."""
    named = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    return tuple((name, tensor.dtype, tensor.shape[1:]) for name, tensor in named)


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """Batches of one shape as one batch."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: torch.cat([part[name] for part in parts if isinstance(part, dict)]) for name in first}
    return tuple(torch.cat([part[i] for part in parts if isinstance(part, tuple)]) for i in range(len(first)))
