"""`haq check` from end to end on a user's own small space, and what it says to wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from test_cli import Haq
from test_finetune_cli import CODE, SPACE, config, haq, space

from haq.checking import samples_needed
from haq.nn.served import described, served_data
from haq.nn.texts import served_texts
from haq.spacefile import load_space

__all__ = ["config", "haq", "space"]  # fixtures


def images(seed: int, count: int) -> np.ndarray:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture
def exported(haq: Haq, space: Path, config: Path, tmp_path: Path) -> Path:
    raw = json.loads(config.read_text())
    raw["layers"] = {"0": "int8/int8", "3": "int8/int8", "7": "fp16/fp16"}
    config.write_text(json.dumps(raw))
    out = tmp_path / "exported.json"
    assert haq("export", config, "-f", "json", "-o", out, "-s", space).code == 0
    return out


def saved(folder: Path, array: np.ndarray, name: str = "new.npz") -> Path:
    file = folder / name
    if file.suffix == ".npz":
        np.savez(file, array)
    elif file.suffix == ".npy":
        np.save(file, array)
    else:
        save_file({"x": np.ascontiguousarray(array)}, str(file))
    return file


@pytest.mark.parametrize("name", ["new.npz", "new.npy", "new.safetensors"])
def test_the_same_kind_of_data_passes(haq: Haq, space: Path, exported: Path, tmp_path: Path, name: str) -> None:
    new = saved(tmp_path, images(20, 200), name)
    ran = haq("check", exported, "--data", new, "--space", space, "--max-disagreement-points", "5")
    assert ran.code == 0, ran.err
    assert "0 of 3 layer inputs raise an alarm" in ran.out
    assert "answers other than FP32's: " in ran.out


def test_scaled_data_fail_and_name_the_layers_and_json_says_the_same(
    haq: Haq, space: Path, exported: Path, tmp_path: Path
) -> None:
    new = saved(tmp_path, 4 * images(20, 200))
    ran = haq("check", exported, "--data", new, "--space", space, "--json")
    assert ran.code == 1
    assert ran.err.startswith("haq: the data are not what the config was made for: 0, operand 0: ")
    found = json.loads(ran.out)
    assert found["passed"] is False
    assert found["drifted_layers"][0] == "0"
    first = found["operands"][0]
    assert first["peak_ratio"] == pytest.approx(4, rel=0.1)
    assert first["clipped_share"] > 0.2
    assert first["calibrated_clipped_share"] < 0.01
    assert first["distance"]["peak"] == 1.0
    agreement = found["agreement"]
    assert agreement["samples"] == 200
    low, high = agreement["disagreement_interval"]["low"], agreement["disagreement_interval"]["high"]
    assert low <= agreement["disagreement_points"] <= high
    assert agreement["kl_nats"] > 0
    table = haq("check", exported, "--data", new, "--space", space)
    assert table.code == 1
    assert "drifted, clips" in table.out


def test_each_limit_closes_alone(haq: Haq, space: Path, exported: Path, tmp_path: Path) -> None:
    new = saved(tmp_path, 4 * images(20, 500))
    quiet = ("check", exported, "--data", new, "-s", space, "--significance", "0", "--max-clipped", "100")
    assert haq(*quiet).code == 0
    disagreement = json.loads(haq(*quiet, "--json").out)["agreement"]["disagreement_points"]
    assert disagreement > 1
    assert "are not FP32's, limit 1" in haq(*quiet, "--max-disagreement-points", "1").err
    assert "are clipped" in haq(*quiet[:-1], "5").err
    assert "not what it was calibrated on" in haq("check", exported, "--data", new, "-s", space, "--max-clipped",
                                                  "100").err  # fmt: skip


def test_how_many_samples_a_limit_takes_is_wilsons_interval_of_none() -> None:
    # 0 of n: z^2 / (n + z^2) < 1 % from 3.8415 x 99 = 380.3 on
    assert samples_needed(0.01) == 381
    assert samples_needed(0.0) == 1


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (
            images(1, 100).reshape(100, 8, 8),
            "another shape; got '(100, 8, 8) float32'; expected an array of (samples, 1, 8, 8)",
        ),
        (images(1, 100)[:0], "no samples"),
        (np.full((100, 1, 8, 8), np.nan, np.float32), "not finite"),
        (np.zeros((100, 1, 8, 8), np.uint8), "another type"),
        (images(1, 4), "too few samples to see the limit; got 4; expected at least "),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(
    haq: Haq, space: Path, exported: Path, tmp_path: Path, array: np.ndarray, says: str
) -> None:
    assert says in haq.error("check", exported, "--data", saved(tmp_path, array), "-s", space)


def test_wrong_input_is_one_line(haq: Haq, space: Path, config: Path, exported: Path, tmp_path: Path) -> None:
    new = saved(tmp_path, images(1, 100))
    assert "holds no activation summaries" in haq.error("check", config, "--data", new, "-s", space)
    assert "do not exist" in haq.error("check", exported, "--data", tmp_path / "none", "-s", space)
    assert "cannot be read" in haq.error("check", exported, "--data", _torn(tmp_path), "-s", space)
    assert ".npz, .npy, .safetensors" in haq.error("check", exported, "--data", space, "-s", space)
    assert "at least 381 samples" in haq.error("check", exported, "--data", new, "-s", space,
                                               "--max-disagreement-points", "1")  # fmt: skip
    assert "0 to 0.5" in haq.error("check", exported, "--data", new, "-s", space, "--significance", "2")
    assert "another network" not in haq.error("check", exported, "--data", new)
    assert "--data" in haq.error("check", exported)


def test_the_weights_must_be_those_of_the_config(haq: Haq, space: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(CODE.replace("manual_seed(0)", "manual_seed(1)"))
    space.write_text(SPACE.replace("net.py", "other.py"))
    new = saved(tmp_path, images(1, 100))
    assert "those of the c" in haq.error("check", exported, "--data", new, "-s", space)


def test_a_spaces_own_reader_needs_no_labels(haq: Haq, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(SPACE + 'served = "./reader.py:served"\n')
    (tmp_path / "reader.py").write_text(
        CODE + "\ndef served(space, data, weights):\n    return [(images(int(data.read_text()), 100),)]\n"
    )
    (tmp_path / "seed.txt").write_text("20")
    ran = haq("check", exported, "--data", tmp_path / "seed.txt", "-s", tmp_path / "own.toml")
    assert ran.code == 0, ran.err
    assert "100 samples" in ran.out


def test_images_are_read_from_any_folders(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, folder in enumerate((tmp_path, tmp_path / "deep" / "er")):
        Image.new("RGB", (300, 260), (255 * number, 0, 0)).save(folder / f"{number}.png")
    batches = []

    class Keep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batches.append(x)
            return x

    served_data(load_space("resnet18"), tmp_path, None)(Keep())
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 224, 224)]
    # ImageNet's mean and deviation of red: (0 - 0.485) / 0.229, (1 - 0.485) / 0.229
    assert sorted(batches[0][:, 0, 0, 0].tolist()) == pytest.approx([-2.1179, 2.2489], abs=1e-4)


def test_texts_need_a_column_of_text_alone(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "new.tsv").write_text("text\ngood\nbad good\n")
    (batch,) = served_texts(load_space("bert_base"), tmp_path / "new.tsv", tmp_path)
    assert isinstance(batch, dict)
    assert batch["input_ids"].tolist() == [[2, 4, 3, 0], [2, 5, 4, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert "input_ids of (samples, up to " in described(load_space("bert_base").model.inputs)


def _torn(folder: Path) -> Path:
    file = folder / "torn.npz"
    file.write_bytes(b"PK no archive")
    return file
