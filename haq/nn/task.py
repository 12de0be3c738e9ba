"""What accuracy means for a model: a task gives calibration batches and scores a model on a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.accuracy import Scores
from haq.errors import InputError, lookup
from haq.nn.metrics import Outputs, check_classification, right

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
"""One batch as the model takes it: positional tensors, or keyword tensors. The first axis is the batch."""

SPLITS = ("train", "calibration", "search", "validation")
"""Disjoint: quantizers are fitted on calibration, candidates compared on search, nothing is chosen on validation."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Prepared inputs and their (n,) integer labels."""

    inputs: Inputs
    labels: Tensor


class Task(Protocol):
    """Data with a metric. `data_hash` names the content of all its splits.

    One that also has `outputs` (HasOutputs) is judged by any metric, and its measurements carry all of METRICS.
    """

    @property
    def metric(self) -> str: ...

    @property
    def data_hash(self) -> str: ...

    def calibration(self) -> Sequence[Inputs]:
        """The batches to calibrate on."""

    def scores(self, model: nn.Module, split: str) -> Scores | float:
        """Per-sample scores in a fixed order (or one number) of `model` on the split `search` or `validation`."""


@runtime_checkable
class HasOutputs(Protocol):
    """A task that shows what a model answers, so that metrics can be chosen apart from it."""

    def outputs(self, model: nn.Module, split: str) -> Outputs:
        """What the model answers on the split, from one pass, and what is right, in a fixed order."""


@runtime_checkable
class HasCalibrationLabels(Protocol):
    """A task that knows what is right on its calibration batches."""

    @property
    def calibration_labels(self) -> tuple[Tensor, ...]:
        """(n,) class numbers for each batch of `calibration`, or none at all."""


@runtime_checkable
class HasSamples(HasOutputs, Protocol):
    """A task that also answers for some samples alone, so that a candidate without prospects can be stopped early."""

    def outputs_of(self, model: nn.Module, split: str, samples: NDArray[np.intp]) -> Outputs:
        """What `outputs` gives for the samples with these numbers (from 0, in its order), in the order of `samples`.

        The last digits may differ, since samples may be in other company.
        """


@dataclass(frozen=True, eq=False)
class ClassificationTask:
    """Prepared batches per split; a sample scores 1.0 where the largest logit is the label's, else 0.0.

    splits: at least `search` and `validation`. A sample with a NaN or an infinity among its logits scores 0.0: a
    candidate whose fp16 overflowed is wrong, never lucky. class_names: in the order of the logits, where known.
    calibration_labels: (n,) for each calibration batch, or none at all; only sensitivities are read off them.
    """

    splits: Mapping[str, tuple[Batch, ...]]
    calibration_batches: tuple[Inputs, ...]
    data_hash: str
    metric: str = "top-1 accuracy"
    class_names: tuple[str, ...] = ()
    calibration_labels: tuple[Tensor, ...] = ()

    def calibration(self) -> Sequence[Inputs]:
        return self.calibration_batches

    def outputs(self, model: nn.Module, split: str) -> Outputs:
        """The logits of the split; raises InputError on an unknown split, on no samples, and on no logits."""
        batches = lookup(self.splits, split, "split")
        if not batches:
            raise InputError("the split is empty", where=f"split {split!r}", got=0, expected="at least one batch")
        with torch.inference_mode():
            parts = [logits_of(forward(model, batch.inputs)) for batch in batches]
        # Cloned outside of the inference mode, since users' metrics may do what it forbids.
        return Outputs(
            tuple(part.detach().cpu().clone() for part in parts),
            tuple(batch.labels.cpu() for batch in batches),
            self.class_names,
        )

    def outputs_of(self, model: nn.Module, split: str, samples: NDArray[np.intp]) -> Outputs:
        """The logits of some samples, batched anew; raises InputError as `outputs` does."""
        batches, order = regrouped(lookup(self.splits, split, "split"), samples)
        found = replace(self, splits={split: batches}).outputs(model, split)
        return found.taken(np.argsort(order))

    def scores(self, model: nn.Module, split: str) -> Scores:
        """(n,) scores; raises InputError as `outputs` does, and on logits that do not fit the labels."""
        return top1_scores(self.outputs(model, split), split)


@dataclass(frozen=True, eq=False)
class CallableTask:
    """A user's own measure: `evaluate(model)` returns one number or per-sample scores, larger is better.

    evaluate: measures on the search split. validate: on data that the search never saw; without it `evaluate` is the
    measure there too, and its figure is no independent one.
    """

    evaluate: Callable[[nn.Module], object]
    calibration_batches: tuple[Inputs, ...]
    validate: Callable[[nn.Module], object] | None = None
    metric: str = "accuracy"
    data_hash: str = field(default="")

    def __post_init__(self) -> None:
        if not self.data_hash:
            object.__setattr__(self, "data_hash", hash_inputs(self.calibration_batches))

    def calibration(self) -> Sequence[Inputs]:
        return self.calibration_batches

    def scores(self, model: nn.Module, split: str) -> Scores | float:
        """What the user's function returns, as float64; raises InputError if it is neither a number nor an array."""
        return as_scores(self.answer(model, split), "the evaluate function", split)

    def answer(self, model: nn.Module, split: str) -> object:
        """What the user's function returns, as it is."""
        function = lookup({"search": self.evaluate, "validation": self.validate or self.evaluate}, split, "split")
        with torch.inference_mode():
            return function(model)


def as_scores(raw: object, whose: str, split: str) -> Scores | float:
    """A number or per-sample scores as float64; raises InputError, naming `whose` they are, if they are neither."""
    try:
        if raw is None:
            raise TypeError  # numpy would turn a forgotten `return` into NaN
        array = np.asarray(raw.detach().cpu() if isinstance(raw, Tensor) else raw, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim > 1:
        raise InputError(
            f"{whose} returned neither a number nor one score per sample",
            where=f"split {split!r}",
            got=type(raw).__name__ if array.size == 0 else array.shape,
            expected="a float or an array of shape (samples,)",
        )
    return float(array) if array.ndim == 0 else array


def forward(model: nn.Module, inputs: Inputs) -> object:
    """The model's output for one batch."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def batch_size(inputs: Inputs) -> int:
    """How many samples the batch holds."""
    tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    return int(tensors[0].shape[0])


def first_samples(inputs: Inputs, count: int) -> Inputs:
    """The first `count` samples of a batch, or all of them where there are fewer."""
    if isinstance(inputs, dict):
        return {name: tensor[:count] for name, tensor in inputs.items()}
    return tuple(tensor[:count] for tensor in inputs)


def taken(inputs: Inputs, rows: Tensor) -> Inputs:
    """These rows of a batch's inputs."""
    if isinstance(inputs, dict):
        return {name: tensor[rows] for name, tensor in inputs.items()}
    return tuple(tensor[rows] for tensor in inputs)


def regrouped(batches: Sequence[Batch], samples: NDArray[np.intp]) -> tuple[tuple[Batch, ...], NDArray[np.intp]]:
    """Some samples of a split in batches of one input shape, no larger than the split's, and the order they are in now.

    samples: numbers from 0 over all batches; row i of the new batches, taken together, is `samples[order[i]]`. Texts
    keep the width that they are padded to, so those of another width go into another batch.
    """
    ends = np.cumsum([len(batch.labels) for batch in batches])
    sources = np.searchsorted(ends, samples, side="right")
    groups: dict[tuple[object, ...], list[tuple[Batch, NDArray[np.intp]]]] = {}
    for number, batch in enumerate(batches):
        places = np.flatnonzero(sources == number)
        if len(places):
            rows = torch.from_numpy(samples[places] - (ends[number] - len(batch.labels)))
            part = Batch(taken(batch.inputs, rows), batch.labels[rows])
            groups.setdefault(_shapes(batch.inputs), []).append((part, places))
    most = max(len(batch.labels) for batch in batches)
    made: list[Batch] = []
    for parts in groups.values():
        whole = _joined([part for part, _ in parts])
        made += [
            Batch(taken(whole.inputs, rows), whole.labels[rows])
            for rows in torch.split(torch.arange(len(whole.labels)), most)
        ]
    return tuple(made), np.concatenate([places for parts in groups.values() for _, places in parts])


def _shapes(inputs: Inputs) -> tuple[object, ...]:
    """What batches that are to be joined have in common."""
    if isinstance(inputs, dict):
        return tuple((name, *tensor.shape[1:]) for name, tensor in inputs.items())
    return tuple(tuple(tensor.shape[1:]) for tensor in inputs)


def _joined(parts: Sequence[Batch]) -> Batch:
    labels, first = torch.cat([part.labels for part in parts]), parts[0].inputs
    if isinstance(first, dict):
        named = [part.inputs for part in parts if isinstance(part.inputs, dict)]
        return Batch({name: torch.cat([inputs[name] for inputs in named]) for name in first}, labels)
    columns = zip(*(part.inputs for part in parts), strict=True)
    return Batch(tuple(torch.cat(column) for column in columns), labels)


def logits_of(output: object) -> Tensor:
    """The logits in a model's output: the tensor itself, a Hugging Face output's `logits`, or a tuple's first."""
    if isinstance(output, Tensor):
        return output
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        "the model's output holds no logits",
        got=type(output).__name__,
        expected="a tensor, an object with .logits, or a tuple that starts with a tensor",
        way_out="pass your own evaluate function",
    )


def hash_inputs(batches: Sequence[Inputs]) -> str:
    """16 hex digits that name the batches' content: names, shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for inputs in batches:
        pairs = sorted(inputs.items()) if isinstance(inputs, dict) else [(str(i), t) for i, t in enumerate(inputs)]
        for name, tensor in pairs:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()[:16]


def split_indices(count: int, sizes: Mapping[str, int], seed: int) -> dict[str, tuple[int, ...]]:
    """Disjoint random index sets out of range(count), one per named size, each in ascending order.

    Raises InputError if the sizes ask for more samples than there are, or for a negative number.
    """
    if sum(sizes.values()) > count or min(sizes.values(), default=0) < 0:
        raise InputError(
            "the splits do not fit the data",
            got=f"{dict(sizes)}, together {sum(sizes.values())}",
            expected=f"non-negative sizes that sum to at most {count}",
        )
    order = np.random.default_rng(seed).permutation(count)
    ends = np.cumsum([0, *sizes.values()])
    return {
        name: tuple(int(i) for i in np.sort(order[start:end]))
        for name, start, end in zip(sizes, ends[:-1], ends[1:], strict=True)
    }


def top1_scores(outputs: Outputs, split: str) -> Scores:
    """(n,) 1.0 where the largest logit is the label's; raises InputError on logits that do not fit the labels."""
    check_classification(outputs, split)
    return right(outputs, outputs)
