"""A folder of images, one subfolder per class, becomes a task; broken folders and files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.bundle import load_bundle
from haq.nn.checkpoints import weights_hash
from haq.nn.images import DEVIATION, MEAN, centred_image_folder_task, image_folder_task, read_image
from haq.nn.models.resnet import resnet18
from haq.spacefile import load_space, with_input

Image = pytest.importorskip("PIL.Image")
SPACE = with_input(load_space("resnet18"), "3x56x56")
COLOURS = {"apple": (255, 0, 0), "bean": (0, 255, 0), "cherry": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 14 plain images, 80 wide and 70 high."""
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(14):
            Image.new("RGB", (80, 70), colour).save(tmp_path / name / f"{number:02}.png")
    return tmp_path


class Brightest(nn.Module):
    """The class is the strongest colour channel: right on every image of the folder."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def test_classes_are_the_folder_names_in_sorted_order(folder: Path) -> None:
    task = image_folder_task(SPACE, folder, None)
    assert task.classes == ("apple", "bean", "cherry")
    assert [task.files[n].parent.name for n in range(42)] == [task.classes[label] for label in task.labels]


def test_a_model_that_is_right_scores_one_everywhere(folder: Path) -> None:
    task = image_folder_task(SPACE, folder, None)
    for split in ("search", "validation"):
        scores = task.scores(Brightest(), split)
        # 42 images: 4 calibrate (a tenth), 38 are halved.
        assert scores.tolist() == [1.0] * 19


def test_some_images_alone_are_answered_in_the_order_asked(folder: Path) -> None:
    task = image_folder_task(SPACE, folder, None)
    every, asked = task.outputs(Brightest(), "search"), np.array([17, 0, 9])
    found = task.outputs_of(Brightest(), "search", asked)
    assert torch.equal(torch.cat(found.parts), torch.cat(every.parts)[asked])
    assert torch.equal(torch.cat(found.labels), torch.cat(every.labels)[asked])


def test_the_splits_are_disjoint_cover_everything_and_repeat(folder: Path) -> None:
    first, second = (image_folder_task(SPACE, folder, None) for _ in range(2))
    assert sorted(n for rows in first.rows.values() for n in rows) == list(range(42))
    assert first.rows == second.rows
    assert first.data_hash == second.data_hash


def test_other_files_have_another_hash(folder: Path) -> None:
    before = image_folder_task(SPACE, folder, None).data_hash
    Image.new("RGB", (80, 70)).save(folder / "bean" / "99.png")
    assert image_folder_task(SPACE, folder, None).data_hash != before


def test_calibration_batches_are_normalised_with_imagenets_statistics(folder: Path) -> None:
    task = image_folder_task(SPACE, folder, None)
    (batch,) = task.calibration()
    assert isinstance(batch, tuple)
    assert batch[0].shape == (4, 3, 56, 56)
    number = task.rows["calibration"][0]
    colour = COLOURS[task.files[number].parent.name]
    expected = [(c / 255 - m) / d for c, m, d in zip(colour, MEAN, DEVIATION, strict=True)]
    assert batch[0][0, :, 20, 30].tolist() == pytest.approx(expected, abs=1e-5)


def test_networks_from_tensorflow_get_channels_from_minus_one_to_one_of_the_same_images(folder: Path) -> None:
    usual, centred = (make(SPACE, folder, None) for make in (image_folder_task, centred_image_folder_task))
    assert usual.rows == centred.rows
    (batch,) = centred.calibration()
    assert isinstance(batch, tuple)
    # Red is (255, 0, 0): 255 / 255 is 1 and becomes (1 - 0.5) / 0.5 = 1, 0 becomes -1.
    assert batch[0].unique().tolist() == [-1.0, 1.0]


def test_an_image_is_resized_on_its_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = 255  # right half white
    Image.fromarray(pixels).save(tmp_path / "x.png")
    cut = read_image(tmp_path / "x.png", 56)  # 56 x 256 / 224 = 64: no resize, the middle 56 x 56 remain
    assert cut.shape == (56, 56, 3)
    assert torch.equal(cut, torch.from_numpy(pixels[4:60, 36:92]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_every_mode_become_three_channels(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (60, 60)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 56).shape == (56, 56, 3)


def test_a_model_with_another_number_of_classes_is_refused(folder: Path) -> None:
    task = image_folder_task(SPACE, folder, None)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    with pytest.raises(InputError, match="3 class folders, 1000 logits"):
        task.scores(model, "search")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "bean" / "00.png").write_bytes(b"no image"), r"bean/00\.png.*cannot be read"),
        (lambda f: [p.unlink() for p in (f / "bean").iterdir()], "bean: a class folder holds no images"),
        (lambda f: (f / "notes").mkdir(), "notes: a class folder holds no images"),
    ],
)
def test_a_broken_folder_is_named_before_anything_runs(folder: Path, break_it: object, message: str) -> None:
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        image_folder_task(SPACE, folder, None)


def test_a_truncated_image_is_named_when_it_is_read(folder: Path) -> None:
    path = folder / "bean" / "00.png"
    Image.effect_noise((80, 70), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"00\.png.*cannot be read"):
        read_image(path, 56)


def test_no_folder_no_classes_and_too_few_images_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class folders"):
        image_folder_task(SPACE, tmp_path, None)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "a" / "x.png")
    with pytest.raises(InputError, match=r"too few images.*at least 3"):
        image_folder_task(SPACE, tmp_path, None)
    with pytest.raises(InputError, match="no folder"):
        image_folder_task(SPACE, tmp_path / "a" / "x.png", None)


def test_an_input_that_is_no_square_image_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no square colour images"):
        image_folder_task(with_input(load_space("resnet18"), "3x56x64"), folder, None)


def test_a_checkpoint_and_a_folder_make_a_measurable_network(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = tmp_path_factory.mktemp("space")
    text = (load_space("resnet18").path).read_text().replace("[3, 224, 224]", "[3, 56, 56]")
    (own / "fruit.toml").write_text(
        text.replace("[[model.inputs]]", "arguments = { num_classes = 3 }\n[[model.inputs]]")
    )
    torch.manual_seed(1)
    model = resnet18(num_classes=3)
    torch.save({"state_dict": model.state_dict(), "epoch": 90}, own / "fruit.pth")
    bundle = load_bundle(load_space(own / "fruit.toml"), weights=own / "fruit.pth", data=folder)
    assert bundle.weights_hash == weights_hash(model)
    assert bundle.task is not None
    assert len(bundle.task.scores(bundle.model, "search")) == 19
