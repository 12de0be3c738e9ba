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

from haq.nn.task import Inputs, forward, logits_of

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


def jittered(degrees: float, scale: float, shift: float) -> Augment:
    """An augmentation that turns, scales and moves every image at random, repeating the border.

    degrees: largest turn each way. scale: largest change of size, as a fraction. shift: largest move, as a fraction of
    the image's side.
    """

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.rand((4, len(images)), generator=generator) * 2 - 1
        angle, zoom = draw[0] * math.radians(degrees), 1 + draw[1] * scale
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        # affine_grid's coordinates run from -1 to 1, so that a side is 2 long.
        move = draw[2:] * 2 * shift
        theta = torch.stack([torch.stack([cos, -sin, move[0]], 1), torch.stack([sin, cos, move[1]], 1)], 1)
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

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
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(recipe, len(batches) * recipe.epochs))
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
            logits_of(forward(model, inputs)), labels, label_smoothing=recipe.label_smoothing
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


def schedule(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Step -> factor on the peak learning rate: a linear warm-up, then a cosine to zero at the last of `steps`."""
    rising = max(1, round(recipe.warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
