"""Whether the FP32 network runs on its data at all: shapes that fit, and numbers that are numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from haq.errors import InputError
from haq.nn.task import ClassificationTask, Inputs, Task, first_samples, forward
from haq.nn.trace_graph import tensors_in

TRIED = 8
"""Samples of a batch that are tried: enough for shapes, and for what is broken throughout."""


def check_sound(model: nn.Module, task: Task, split: str, example: Inputs) -> None:
    """Raise InputError where the network cannot be diagnosed, since it is broken before it is quantized.

    Tried on the first calibration samples and, where the task shows them, on the first of the split. example: an input
    that the network was traced on. Names the first layer whose result is not finite.
    """
    batches = {"calibration": next(iter(task.calibration()))}
    if isinstance(task, ClassificationTask) and task.splits.get(split):
        batches[split] = task.splits[split][0].inputs
    for name, batch in batches.items():
        _check_batch(model, first_samples(batch, TRIED), example, f"split {name!r}")


def _check_batch(model: nn.Module, batch: Inputs, example: Inputs, where: str) -> None:
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError("the data hold what is no finite number", where=where, expected="finite inputs")
    with _broken_layers(model) as broken, torch.inference_mode():
        try:
            outputs = forward(model, batch)
        except Exception as error:  # the network may raise anything on data that it was not made for
            raise InputError(
                "the network does not run on the data",
                where=where,
                got=_shapes(batch),
                expected=f"inputs of {_shapes(example)}",
                way_out=(str(error).splitlines() or [type(error).__name__])[0][:160],
            ) from error
    if any(tensor.is_floating_point() and not torch.isfinite(tensor).all() for tensor in tensors_in(outputs)):
        first = broken[0] if broken else "the output"
        raise InputError(
            f"the network's results are not finite in FP32, from {first} on", where=where,
            expected="finite results", way_out="quantization did not break it: look at its weights and data first",
        )  # fmt: skip


@contextmanager
def _broken_layers(model: nn.Module) -> Iterator[list[str]]:
    """Modules without parts whose results are not finite, in the order in which they run."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, result: object) -> None:
            if any(t.is_floating_point() and not torch.isfinite(t).all() for t in tensors_in(result)):
                found.append(name)

        return look

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _shapes(inputs: Inputs) -> str:
    """Without the batch: `3x224x224`."""
    return ", ".join("x".join(map(str, tensor.shape[1:])) or "one number" for tensor in tensors_in(inputs))
