"""A user's folder of images, one subfolder per class, as a task with ImageNet's standard preprocessing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from haq.accuracy import Scores
from haq.errors import InputError, lookup
from haq.nn.metrics import Outputs
from haq.nn.task import Batch, ClassificationTask, Inputs, forward, logits_of, split_indices, top1_scores
from haq.spacefile import SpaceFile

log = logging.getLogger(__name__)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# The statistics that torchvision's ImageNet weights were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]
CENTRE = (0.5, 0.5, 0.5)
RESIZE_OVER_CROP = 256 / 224
SPLIT_SEED = 0
MOST_CALIBRATION = 256
BATCH = 8
"""So few that no activation takes 32 MB (in ResNet-50 3.2 MB an image). From there on the C library maps fresh
memory for each tensor, and a CPU spends a third of the time on clearing its pages."""
KEPT_IMAGES = 8192
"""Decoded images kept in memory (150 kB each at 224x224), so that a second candidate need not decode them again."""


@dataclass(frozen=True, eq=False)
class ImageFolderTask:
    """Images of a trained classifier's classes; class folders sorted by name are the classes 0, 1, 2, ...

    (ImageNet's folders n01440764, n01443537, ... sorted so give the standard order.) files and labels: one per image.
    rows: split -> image numbers, disjoint. side: pixels of the square crop. mean and deviation: what the channels,
    from 0 to 1, are normalized by. `kept` is a cache, and changes.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    rows: dict[str, tuple[int, ...]]
    side: int
    data_hash: str
    metric: str = "top-1 accuracy"
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def calibration(self) -> Sequence[Inputs]:
        return tuple(self._batch(part).inputs for part in _parts(self.rows["calibration"]))

    @property
    def calibration_labels(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([self.labels[n] for n in part]) for part in _parts(self.rows["calibration"]))

    def outputs(self, model: nn.Module, split: str) -> Outputs:
        """The logits of the split; raises InputError if classes and logits differ in number."""
        return self._answers(model, lookup(self.rows, split, "split"))

    def outputs_of(self, model: nn.Module, split: str, samples: NDArray[np.intp]) -> Outputs:
        """The logits of some samples of the split; raises InputError as `outputs` does."""
        rows = lookup(self.rows, split, "split")
        return self._answers(model, [rows[number] for number in samples])

    def _answers(self, model: nn.Module, rows: Sequence[int]) -> Outputs:
        checked = _ClassCount(model, len(self.classes), str(self.root))
        # One batch at a time: the images of a large split do not fit into memory as floats.
        single = (ClassificationTask({"": (self._batch(part),)}, (), self.data_hash) for part in _parts(rows))
        found = [task.outputs(checked, "") for task in single]
        return Outputs(
            tuple(part for one in found for part in one.parts),
            tuple(labels for one in found for labels in one.labels),
            self.classes,
        )

    def scores(self, model: nn.Module, split: str) -> Scores:
        """(n,) 1.0 where the largest logit is the label's; raises InputError if classes and logits differ in number."""
        return top1_scores(self.outputs(model, split), split)

    def _batch(self, numbers: Sequence[int]) -> Batch:
        pixels = torch.stack([self._pixels(n) for n in numbers]).permute(0, 3, 1, 2).float() / 255
        images = (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.deviation).view(3, 1, 1)
        return Batch((images,), torch.tensor([self.labels[n] for n in numbers]))

    def _pixels(self, number: int) -> Tensor:
        """(side, side, 3) uint8."""
        if number in self.kept:
            return self.kept[number]
        pixels = read_image(self.files[number], self.side)
        if len(self.kept) < KEPT_IMAGES:
            self.kept[number] = pixels
        return pixels


class _ClassCount(nn.Module):
    """The model, refused when it does not tell as many classes apart as the folder has."""

    def __init__(self, model: nn.Module, classes: int, where: str) -> None:
        super().__init__()
        self.model, self.classes, self.where = model, classes, where

    def forward(self, *inputs: Tensor) -> Tensor:
        logits = logits_of(forward(self.model, inputs))
        if logits.shape[-1] != self.classes:
            raise InputError(
                "classes of the folder and of the model differ in number",
                where=self.where,
                got=f"{self.classes} class folders, {logits.shape[-1]} logits",
                expected="one folder per class, whose sorted names are in the order of the logits",
            )
        return logits


def image_folder_task(space: SpaceFile, data: Path, weights: Path | None) -> ImageFolderTask:
    """The task over `data/<class>/*.jpg`, and the like, at the space's input size; `weights` do not matter here.

    A tenth of the images, at most 256, calibrate; the rest is halved into search and validation, at random with a fixed
    seed. Raises InputError on a folder without class folders, a class without images, and a file that is no image.
    """
    shape = space.model.inputs[0].shape
    if len(space.model.inputs) != 1 or len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise InputError(
            "the model takes no square colour images", where=space.name, got=shape, expected="one input 3xNxN"
        )
    classes, files, labels = list_images(data)
    calibration = min(MOST_CALIBRATION, max(1, len(files) // 10))
    search = (len(files) - calibration) // 2
    if search < 1:
        raise InputError("too few images to split", where=str(data), got=len(files), expected="at least 3")
    sizes = {"calibration": calibration, "search": search, "validation": len(files) - calibration - search}
    log.info("%s: %d classes; images per split: %s", data, len(classes), sizes)
    digest = hashlib.sha256()
    for file in files:
        _check_image(file)
        # Names and sizes stand for the content: reading all of ImageNet to hash it takes minutes at every start.
        digest.update(f"{file.relative_to(data).as_posix()} {file.stat().st_size}\n".encode())
    rows = split_indices(len(files), sizes, SPLIT_SEED)
    return ImageFolderTask(data, classes, files, labels, rows, shape[1], digest.hexdigest()[:16])


def centred_image_folder_task(space: SpaceFile, data: Path, weights: Path | None) -> ImageFolderTask:
    """The same with channels from -1 to 1, as networks that come from TensorFlow take them."""
    task = image_folder_task(space, data, weights)
    return replace(task, mean=CENTRE, deviation=CENTRE)


def served_images(space: SpaceFile, data: Path, weights: Path | None) -> Iterator[Inputs]:
    """Batches of all images under a folder, in subfolders or not, prepared as for the task; no labels are needed.

    Raises InputError on a folder without images and on a file that is no image.
    """
    return _served(space, data, MEAN, DEVIATION)


def centred_served_images(space: SpaceFile, data: Path, weights: Path | None) -> Iterator[Inputs]:
    """The same with channels from -1 to 1, as networks that come from TensorFlow take them."""
    return _served(space, data, CENTRE, CENTRE)


def _served(space: SpaceFile, data: Path, mean: Triple, deviation: Triple) -> Iterator[Inputs]:
    files = tuple(sorted(f for f in data.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()))
    if not files:
        raise InputError("no images", where=str(data), got="0 files", expected="a folder of images")
    side = space.model.inputs[0].shape[-1]
    task = ImageFolderTask(data, (), files, (0,) * len(files), {}, side, "", mean=mean, deviation=deviation)
    return (task._batch(part).inputs for part in _parts(range(len(files))))


def read_image(file: Path, side: int) -> Tensor:
    """(side, side, 3) uint8: the shorter side resized to side x 256/224, then the centre cut out (as torchvision)."""
    image = resized(file, round(side * RESIZE_OVER_CROP))
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)), dtype=np.uint8))


def resized(file: Path, shorter: int) -> Image.Image:
    """The colour image with its shorter side at so many pixels; raises InputError on a file that is no image."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _no_image(file, error) from error
    width, height = image.size
    size = (int(shorter * width / min(image.size)), int(shorter * height / min(image.size)))
    return image.resize(size, Image.Resampling.BILINEAR)


def list_images(data: Path) -> tuple[tuple[str, ...], tuple[Path, ...], tuple[int, ...]]:
    """Class names in order; image files and their class numbers."""
    expected = "a folder with one subfolder of images per class"
    if not data.is_dir():
        raise InputError("the data are no folder", got=str(data), expected=expected)
    try:
        folders = sorted(f for f in data.iterdir() if f.is_dir() and not f.name.startswith("."))
        files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
            if not found:
                raise InputError("a class folder holds no images", where=str(folder), expected=expected)
            files += found
            labels += [label] * len(found)
    except OSError as error:
        raise InputError("the folder cannot be read", where=str(data), got=error.strerror) from error
    if not folders:
        raise InputError("the folder has no class folders", where=str(data), expected=expected)
    return tuple(f.name for f in folders), tuple(files), tuple(labels)


def _check_image(file: Path) -> None:
    """Look at the header, so that a broken file is found before the search rather than in the middle of it."""
    try:
        with Image.open(file):
            return
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _no_image(file, error) from error


def _no_image(file: Path, error: Exception) -> InputError:
    reason = "unknown or damaged format" if isinstance(error, UnidentifiedImageError) else str(error)
    return InputError("the image cannot be read", where=str(file), got=reason, expected="a whole image file")


def _parts(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
