"""`haq finetune` from end to end on a user's own small space, and what it says to wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import Haq

from haq.nn.bundle import load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.trace import trace
from haq.nn.tuned import load_tuned
from haq.spacefile import load_space

SPACE = """
title = "A net of the test's own"
source = "made here"

[model]
factory = "./net.py:network"
trained = true

[[model.inputs]]
shape = [1, 8, 8]

[data]
task = "./net.py:task"
train = "./net.py:training"
"""

CODE = """
import torch
from torch import nn
from haq.nn.task import Batch, ClassificationTask
from haq.nn.training import TensorBatches


def images(seed, count):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    )
    net(images(9, 64))
    return net.eval()


def labelled(seed, count):
    x = images(seed, count)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def task(space):
    splits = {"search": (Batch(*wrap(labelled(1, 96))),), "validation": (Batch(*wrap(labelled(2, 96))),)}
    return ClassificationTask(splits, ((images(3, 64),),), "7")


def wrap(pair):
    return (pair[0],), pair[1]


def training(space):
    return TensorBatches(*labelled(4, 128), 32)
"""

Write = Callable[..., Path]


@pytest.fixture
def haq(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Haq:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    return Haq(capsys)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "own.toml").write_text(SPACE)
    return tmp_path / "own.toml"


@pytest.fixture
def config(space: Path, tmp_path: Path) -> Path:
    """A config such as a search would have written, every layer in 4 bits, activations too."""
    bundle = load_bundle(load_space(space))
    layers = dict.fromkeys(("0", "3", "7"), "int4/int4")
    raw = {
        "schema": "haq.config/v1",
        "id": "abc",
        "model": {"model": "own", "weights_hash": bundle.weights_hash},
        "target": {"name": "reference"},
        "layers": layers,
        "metrics": {"accuracy": {"value": 0.5, "kind": "measured"}, "size_bytes": {"value": 9, "kind": "modelled"}},
        "provenance": {"data_hash": bundle.data_hash},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    return path


def changed(config: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    raw = json.loads(config.read_text())
    change(raw)
    path = config.with_name("changed.json")
    path.write_text(json.dumps(raw))
    return path


def test_a_config_is_finetuned_and_its_numbers_give_the_accuracy_that_it_states(
    haq: Haq, space: Path, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned" / "tuned.json"
    ran = haq("finetune", config, "--space", space, "--epochs", "6", "--learning-rate", "0.01", "--out", out)
    assert ran.code == 0, ran.err
    assert ran.err.startswith("as quantized: ")
    assert "epoch 6/6: loss " in ran.err
    assert "validation" in ran.out
    assert sorted(p.name for p in out.parent.iterdir()) == ["tuned.json", "tuned.safetensors"]
    tuned = json.loads(out.read_text())
    assert (tuned["id"], tuned["parameters"]) == ("abc-tuned", "tuned.safetensors")
    assert tuned["metrics"]["size_bytes"] == {"value": 9, "kind": "modelled"}
    how = tuned["provenance"]["finetune"]
    assert (how["epochs"], how["seed"], how["config"], how["steps"]) == (6, 0, "abc", 24)
    assert how["versions"]["torch"] == torch.__version__.split("+")[0] or how["versions"]["torch"] == torch.__version__
    bundle = load_bundle(load_space(space))
    folded = fold_batch_norm(bundle.model, bundle.example)
    model = load_tuned(out, folded, trace(folded, bundle.example, name="own"))
    assert bundle.task is not None
    for split, key in (("search", "accuracy"), ("validation", "accuracy_validation")):
        metric = tuned["metrics"][key]
        scores = bundle.task.scores(model, split)
        assert metric["value"] == pytest.approx(float(scores.mean()))  # type: ignore[union-attr]
        assert (metric["kind"], metric["samples"]) == ("measured", 96)
        # FP32 is right throughout, since it gave the labels.
        assert metric["drop_points"] == pytest.approx(100 * (1 - metric["value"]))
        assert "drop_interval" in metric
    # The start is one of the epochs to choose from; that training gains something is test_finetune's to show.
    assert how["before"]["accuracy"]["value"] <= tuned["metrics"]["accuracy"]["value"]


def test_json_is_the_config(haq: Haq, space: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    ran = haq("finetune", config, "-s", space, "-n", "1", "--max-minutes", "5", "-o", out, "--json")
    assert json.loads(ran.out) == json.loads(out.read_text())
    assert json.loads(ran.out)["provenance"]["finetune"]["max_seconds"] == 300


def test_other_arguments_beside_a_checkpoint_are_refused(
    haq: Haq, space: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tuned.json"
    with monkeypatch.context() as context:
        context.setattr("haq.nn.tune_config.write_tuned", interrupted)
        ran = haq("finetune", config, "-s", space, "-n", "1", "-o", out)
    assert ran.code == 130
    assert "the same command again" in ran.err
    assert out.with_suffix(".checkpoint.safetensors").is_file()
    ran = haq("finetune", config, "-s", space, "-n", "2", "-o", out)
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("haq: ")
    assert "epochs is 1 there" in ran.err
    ran = haq("finetune", config, "-s", space, "-n", "1", "-o", out)
    assert ran.code == 0
    assert "4 steps are there from before" in ran.err


def interrupted(*args: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw["model"].update(weights_hash="0"), "weights_hash differs"),
        (lambda raw: raw["provenance"].update(data_hash="0"), "data_hash differs"),
        (lambda raw: raw.update(parameters="a.safetensors"), "finetuned already"),
        (lambda raw: raw.pop("layers"), "no layers"),
        (lambda raw: raw["layers"].update({"7": 4}), "7: 4"),
        (lambda raw: raw["layers"].update({"7": "int5"}), "int5"),
        (lambda raw: raw["layers"].pop("7"), "leaves layers out"),
        (lambda raw: raw.update(schema="haq.config/v9"), "haq.config/v1"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(
    haq: Haq, space: Path, config: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    wrong = changed(config, change)
    assert says in haq.error("finetune", wrong, "-s", space, "-n", "1", "-o", tmp_path / "tuned.json")
    assert not (tmp_path / "tuned.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-n", "0"), "--epochs"),
        (("-n", "1", "--learning-rate", "7"), "--learning-rate"),
        (("-n", "1", "--max-minutes", "0"), "--max-minutes"),
        (("-n", "1", "--data", "absent"), "train_from_path"),
        (("-n", "1", "--train-data", "absent"), "absent"),
        (("-n", "1", "--weights", "absent"), "absent"),
        (("-n", "x"), "x"),
        ((), "--epochs"),
    ],
)
def test_wrong_flags_are_one_line(
    haq: Haq, space: Path, config: Path, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    assert says in haq.error("finetune", config, "-s", space, *flags, "-o", tmp_path / "tuned.json")


def test_code_never_comes_from_what_a_config_names(haq: Haq, config: Path, tmp_path: Path) -> None:
    message = haq.error("finetune", config, "-n", "1", "-o", tmp_path / "tuned.json")
    assert "--space" in message
    named = changed(config, lambda raw: raw["model"].update(model=str(tmp_path / "own.toml")))
    assert "--space" in haq.error("finetune", named, "-n", "1", "-o", tmp_path / "tuned.json")


def test_a_space_without_training_data_says_the_way_out(haq: Haq, space: Path, config: Path, tmp_path: Path) -> None:
    space.write_text(SPACE.replace('train = "./net.py:training"', ""))
    message = haq.error("finetune", config, "-s", space, "-n", "1", "-o", tmp_path / "tuned.json")
    assert "train under [data]" in message
    assert "--train-data" in message


def test_the_config_is_never_overwritten(haq: Haq, space: Path, config: Path, tmp_path: Path) -> None:
    assert "--out" in haq.error("finetune", config, "-s", space, "-n", "1", "-o", config)
    assert "--out" in haq.error("finetune", config, "-s", space, "-n", "1", "-o", tmp_path / "tuned.safetensors")
