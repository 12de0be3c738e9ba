"""Cuts a task's search split to fewer samples, spread evenly over it, for quick or long-running comparisons."""

from __future__ import annotations

from dataclasses import replace

import torch

from haq.errors import InputError
from haq.history import SEARCH
from haq.nn.task import Batch, ClassificationTask, Task, taken


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
    cut, offset = [], 0
    for batch in batches:
        rows = chosen[(chosen >= offset) & (chosen < offset + len(batch.labels))] - offset
        offset += len(batch.labels)
        if len(rows):
            cut.append(Batch(taken(batch.inputs, rows), batch.labels[rows]))
    return replace(task, splits={**task.splits, SEARCH: tuple(cut)})
