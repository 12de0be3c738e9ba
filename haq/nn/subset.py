"""Cuts a task's search split to fewer samples, spread evenly over it, for quick or long-running comparisons."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from haq.errors import InputError
from haq.history import SEARCH
from haq.nn.task import Batch, ClassificationTask, Inputs, Task, batch_size


def cut_search_split(task: Task, samples: int) -> Task:
    """The task with at most `samples` samples in its search split, always the same ones; other splits stay.

    Raises InputError for a task that measures by itself, since only its owner can cut its data.
    """
    if not isinstance(task, ClassificationTask):
        raise InputError(
            "this task measures by itself, so its samples cannot be cut", where="accuracy.samples", got=samples,
            expected="the key left out", way_out="make the evaluate function use fewer samples",
        )  # fmt: skip
    batches = task.splits[SEARCH]
    total = sum(len(batch.labels) for batch in batches)
    if samples >= total:
        return task
    # Data may be sorted by class, so the first samples would be a biased choice; every total/samples-th is not.
    chosen = torch.tensor([i * total // samples for i in range(samples)])
    size = batch_size(batches[0].inputs)
    labels = torch.cat([batch.labels for batch in batches])
    inputs = _concatenate([batch.inputs for batch in batches])
    parts = [chosen[start : start + size] for start in range(0, samples, size)]
    cut = tuple(Batch(_take(inputs, part), labels[part]) for part in parts)
    return replace(task, splits={**task.splits, SEARCH: cut})


def _concatenate(parts: list[Inputs]) -> Inputs:
    first = parts[0]
    if isinstance(first, dict):
        return {name: torch.cat([_named(part)[name] for part in parts]) for name in first}
    return tuple(torch.cat([_positional(part)[i] for part in parts]) for i in range(len(first)))


def _take(inputs: Inputs, rows: Tensor) -> Inputs:
    if isinstance(inputs, dict):
        return {name: tensor[rows] for name, tensor in inputs.items()}
    return tuple(tensor[rows] for tensor in inputs)


def _named(inputs: Inputs) -> dict[str, Tensor]:
    assert isinstance(inputs, dict), "batches of one task are alike"
    return inputs


def _positional(inputs: Inputs) -> tuple[Tensor, ...]:
    assert isinstance(inputs, tuple), "batches of one task are alike"
    return inputs
