"""One small training loop for classifiers: seeded, on a fixed number of threads, without global side effects."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
StateDict = dict[str, Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; everything that changes the result is in here, so that a cache can be keyed by it.

    learning_rate: the peak; it rises linearly over `warmup` of all steps and falls to zero along a cosine.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.2
    label_smoothing: float = 0.0
    largest_gradient_norm: float = 5.0
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Progress:
    """Where training stands after an epoch. loss: mean over the epoch's batches."""

    epoch: int
    epochs: int
    loss: float
    elapsed_s: float

    @property
    def remaining_s(self) -> float:
        return self.elapsed_s / self.epoch * (self.epochs - self.epoch)

    def __str__(self) -> str:
        return f"epoch {self.epoch}/{self.epochs}: loss {self.loss:.4f}, about {self.remaining_s:.0f} s left"


class BatchSource(Protocol):
    """Gives an epoch's training batches, drawn with the generator; `len` is their number."""

    def __len__(self) -> int: ...

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]: ...


@dataclass(frozen=True)
class TensorBatches:
    """Shuffled batches out of tensors in memory. inputs: (n, ...) or name -> (n, ...); labels: (n,).

    The last short batch is kept only if it is the whole data: batch norm is poor on a handful of samples.
    augment: applied to a batch of a single positional input.
    """

    inputs: Tensor | Mapping[str, Tensor]
    labels: Tensor
    batch_size: int
    augment: Augment | None = None

    def __len__(self) -> int:
        return max(1, len(self.labels) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
        order = torch.randperm(len(self.labels), generator=generator)
        for step in range(len(self)):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            if isinstance(self.inputs, Tensor):
                batch = self.inputs[rows]
                yield (self.augment(batch, generator) if self.augment else batch,), self.labels[rows]
            else:
                yield {name: values[rows] for name, values in self.inputs.items()}, self.labels[rows]


def shifted(largest: int) -> Augment:
    """An augmentation that moves every image by up to `largest` pixels each way, repeating the border."""

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, (largest,) * 4, mode="replicate")
        offsets = torch.randint(0, 2 * largest + 1, (len(images), 2), generator=generator).tolist()
        return torch.stack(
            [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
        )

    return augment


@contextmanager
def seeded(seed: int, *, threads: int | None = None) -> Iterator[None]:
    """Run the block with torch's CPU generator seeded and on so many threads; both are restored afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """The model's result on positional or named inputs."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def logits(output: Any) -> Tensor:
    """(batch, classes) out of a plain tensor or out of an object with `.logits` (transformers)."""
    return output if isinstance(output, Tensor) else output.logits


def train(
    model: nn.Module,
    batches: BatchSource,
    recipe: Recipe,
    *,
    groups: Sequence[dict[str, Any]] | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Train the model in place and return its state dict; it is left in eval mode.

    groups: Optimizer parameter groups, each with its own peak `lr` where wanted; default every trainable parameter.
    on_epoch: called after each epoch; the same line goes to the log.
    """
    with seeded(recipe.seed, threads=recipe.threads):
        generator = torch.Generator().manual_seed(recipe.seed)
        optimizer = _optimizer(groups or [{"params": [p for p in model.parameters() if p.requires_grad]}], recipe)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(recipe, len(batches) * recipe.epochs))
        start = time.perf_counter()
        for epoch in range(1, recipe.epochs + 1):
            loss = _train_epoch(model, batches.epoch(generator), optimizer, scheduler, recipe)
            progress = Progress(epoch, recipe.epochs, loss, time.perf_counter() - start)
            log.info("training %s", progress)
            if on_epoch:
                on_epoch(progress)
    model.eval()
    return model.state_dict()


def _train_epoch(
    model: nn.Module,
    batches: Iterator[tuple[Inputs, Tensor]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    recipe: Recipe,
) -> float:
    """One pass over the batches; the mean loss."""
    model.train()
    total, count = 0.0, 0
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(
            logits(forward(model, inputs)), labels, label_smoothing=recipe.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.largest_gradient_norm)
        optimizer.step()
        scheduler.step()
        total, count = total + loss.item(), count + 1
    return total / count


def _optimizer(groups: Sequence[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _schedule(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Step -> factor on the peak learning rate: linear warm-up, then cosine to zero."""
    rising = max(1, round(recipe.warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
