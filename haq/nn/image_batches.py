"""A user's folder of images to train on: shuffled batches, cropped and mirrored at random."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from haq.errors import InputError
from haq.nn.images import CENTRE, DEVIATION, MEAN, RESIZE_OVER_CROP, list_images, resized
from haq.spacefile import SpaceFile

BATCH = 32
"""Images of one update; how many are measured at a time is another matter, and smaller."""


@dataclass(frozen=True, eq=False)
class ImageBatches:
    """Shuffled batches of images. files and labels: one per image. side: pixels of the crop."""

    files: Sequence[Path]
    labels: Tensor
    side: int
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION
    batch_size: int = BATCH

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[tuple[Tensor], Tensor]]:
        order = torch.randperm(len(self.files), generator=generator)
        for rows in torch.split(order, self.batch_size):
            draws = torch.rand((len(rows), 3), generator=generator).tolist()
            cut = [self._crop(self.files[row], *draw) for row, draw in zip(rows.tolist(), draws, strict=True)]
            pixels = torch.stack(cut).permute(0, 3, 1, 2).float() / 255
            images = (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.deviation).view(3, 1, 1)
            yield (images,), self.labels[rows]

    def _crop(self, file: Path, across: float, down: float, turn: float) -> Tensor:
        """(side, side, 3) uint8: at the size at which accuracy is measured, from a random place, mirrored or not."""
        image = resized(file, round(self.side * RESIZE_OVER_CROP))
        left, top = round(across * (image.width - self.side)), round(down * (image.height - self.side))
        cut = image.crop((left, top, left + self.side, top + self.side))
        if turn < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(cut, dtype=np.uint8))


def image_folder_batches(space: SpaceFile, train: Path, data: Path, weights: Path | None) -> ImageBatches:
    """Batches of `train/<class>/*.jpg`, and the like; class folders as in `data`, where accuracy is measured.

    Raises InputError on other class folders, and on an image that is in both.
    """
    classes, files, labels = list_images(train)
    measured_classes, measured, _ = list_images(data)
    if classes != measured_classes:
        odd = sorted(set(classes) ^ set(measured_classes))
        raise InputError(
            "the class folders are not those of the data", where=f"--train-data {train}",
            got=f"{len(classes)} folders, {', '.join(odd[:3])} only in one of the two",
            expected=f"the {len(measured_classes)} folders of {data}",
        )  # fmt: skip
    _check_apart(files, measured)
    return ImageBatches(files, torch.tensor(labels), space.model.inputs[0].shape[-1])


def centred_image_folder_batches(space: SpaceFile, train: Path, data: Path, weights: Path | None) -> ImageBatches:
    """The same with channels from -1 to 1, as networks that come from TensorFlow take them."""
    return replace(image_folder_batches(space, train, data, weights), mean=CENTRE, deviation=CENTRE)


def _check_apart(files: Sequence[Path], measured: Sequence[Path]) -> None:
    """Raise InputError on a file with the content of one that accuracy is measured on, whatever its name."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in measured:
        by_size[file.stat().st_size].append(file)
    for file in files:
        # Only files of one size can be equal: of a large folder few are read.
        for other in by_size.get(file.stat().st_size, ()):
            if _digest(file) == _digest(other):
                raise InputError(
                    "an image to train on is also one that accuracy is measured on", where=str(file), got=str(other),
                    expected="other images",
                )  # fmt: skip


def _digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()
