"""A space becomes a model, an example and a task; whatever is absent or does not fit is said in one line."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from haq.errors import InputError, MissingExtra
from haq.nn.bundle import example_inputs, load_bundle
from haq.nn.checkpoints import weights_hash
from haq.nn.models.resnet import resnet18
from haq.spacefile import InputSpec, SpaceFile, load_space, with_input

CODE = """
import torch
from torch import nn
from haq.nn.task import Batch, ClassificationTask

def build(classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def needs_values():
    model = build()
    assert float(model[0].weight.detach().sum()) != 0
    return model

def no_model():
    return 3

def needs_package():
    import no_such_package

def task(space):
    batch = Batch((torch.zeros(2, *space.model.inputs[0].shape),), torch.tensor([0, 1]))
    return ClassificationTask({"search": (batch,), "validation": (batch,)}, (batch.inputs,), "hash of mine")

def empty_task(space):
    return ClassificationTask({}, (), "")

def weights(space, model):
    return {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items()}

def wrong_weights(space, model):
    return {"0.weight": torch.zeros(1)}

def from_path(space, data, weights):
    found = task(space)
    return ClassificationTask(found.splits, found.calibration_batches, f"{data.name} {weights and weights.name}")

def from_folder(folder):
    model = build()
    model.load_state_dict(torch.load(folder / "w.pt", weights_only=True))
    return model
"""


def space(folder: Path, model: str = 'factory = "./mine.py:build"', data: str = "", extras: str = "[]") -> SpaceFile:
    (folder / "mine.py").write_text(CODE)
    (folder / "mine.toml").write_text(
        textwrap.dedent(f"""
        title = "Mine"
        source = "me"
        extras = {extras}
        [model]
        {model}
        [[model.inputs]]
        shape = [3, 8, 8]
        [data]
        {data}
        """)
    )
    return load_space(folder / "mine.toml")


TASK = 'task = "./mine.py:task"'
WEIGHTS = 'weights = "./mine.py:weights"'
TRAINED = 'factory = "./mine.py:build"\ntrained = true'


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_large", "mnist_resnet18"])
def test_without_data_a_built_in_model_stands_on_the_meta_device_within_a_second(name: str) -> None:
    start = time.perf_counter()
    bundle = load_bundle(load_space(name), with_data=False)
    assert time.perf_counter() - start < 1.5
    assert all(tensor.is_meta for tensor in bundle.model.state_dict().values())
    assert not bundle.model.training
    assert (bundle.name, bundle.task, bundle.weights_hash, bundle.data_hash) == (name, None, None, None)
    assert isinstance(bundle.example, tuple)
    assert bundle.example[0].shape == (1, *load_space(name).model.inputs[0].shape)


def test_a_factory_that_needs_values_is_built_on_the_cpu_instead(tmp_path: Path) -> None:
    bundle = load_bundle(space(tmp_path, 'factory = "./mine.py:needs_values"'), with_data=False)
    assert {p.device.type for p in bundle.model.parameters()} == {"cpu"}


def test_the_spaces_own_task_and_weights_are_loaded(tmp_path: Path) -> None:
    bundle = load_bundle(space(tmp_path, data=f"{TASK}\n{WEIGHTS}"))
    assert all(bool((p == 2.0).all()) for p in bundle.model.parameters())
    assert bundle.task is not None
    assert bundle.data_hash == "hash of mine"
    assert bundle.weights_hash == weights_hash(bundle.model)


def test_two_builds_are_the_same_and_leave_the_random_state_alone(tmp_path: Path) -> None:
    mine = space(tmp_path, TRAINED, TASK)
    torch.manual_seed(3)
    first, second = load_bundle(mine), load_bundle(mine)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert first.weights_hash == second.weights_hash
    assert torch.equal(drawn, torch.rand(1))


def test_the_users_checkpoint_and_data_replace_the_spaces(tmp_path: Path) -> None:
    mine = space(tmp_path, data=f'{TASK}\n{WEIGHTS}\nfrom_path = "./mine.py:from_path"')
    model = load_bundle(mine, with_data=True).model
    torch.save({key: value + 1 for key, value in model.state_dict().items()}, tmp_path / "w.pt")
    (tmp_path / "photos").mkdir()
    bundle = load_bundle(mine, weights=tmp_path / "w.pt", data=str(tmp_path / "photos"))
    assert all(bool((p == 3.0).all()) for p in bundle.model.parameters())
    assert bundle.data_hash == "photos w.pt"


def test_a_weights_folder_goes_to_from_folder(tmp_path: Path) -> None:
    mine = space(tmp_path, 'factory = "./mine.py:build"\nfrom_folder = "./mine.py:from_folder"', TASK)
    (tmp_path / "out").mkdir()
    state = load_bundle(mine, with_data=False).model.state_dict()
    torch.save({key: torch.ones(value.shape) for key, value in state.items()}, tmp_path / "out" / "w.pt")
    bundle = load_bundle(mine, weights=tmp_path / "out")
    assert all(bool((p == 1.0).all()) for p in bundle.model.parameters())
    with pytest.raises(InputError, match=r"weights are a folder.*checkpoint file"):
        load_bundle(space(tmp_path, data=TASK), weights=tmp_path / "out")


def test_a_users_factory_is_found_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    bundle = load_bundle(with_input(load_space("resnet18"), "3x16x16"), model="my_networks:build", with_data=False)
    assert bundle.name == "my_networks:build"
    assert bundle.model[-1].out_features == 2  # type: ignore[index,union-attr]


def test_arguments_go_to_the_factory_that_they_are_written_beside(tmp_path: Path) -> None:
    five = "arguments = { classes = 5 }"
    own = load_bundle(space(tmp_path, f'factory = "./mine.py:build"\n{five}'), with_data=False)
    given = load_bundle(space(tmp_path, five), model="./mine.py:build", with_data=False)
    replaced = load_bundle(
        space(tmp_path, f'factory = "./mine.py:needs_values"\n{five}'), model="./mine.py:build", with_data=False
    )
    assert [b.model[-1].out_features for b in (own, given, replaced)] == [5, 5, 2]  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ('factory = "./mine.py:build"', TASK, r"no trained weights of its own.*--weights FILE.*trained = true"),
        (TRAINED, "", r"no data of its own.*a task under \[data\]"),
        (TRAINED, 'from_path = "./mine.py:from_path"', r"no data of its own.*--data DIR"),
        (TRAINED, 'task = "./mine.py:empty_task"', "no calibration data"),
        ('factory = "./mine.py:build"', f'{TASK}\nweights = "./mine.py:wrong_weights"', "does not fit the model"),
        ('factory = "./mine.py:no_model"', TASK, r"returned no model.*'int'.*nn\.Module"),
        ('factory = "./mine.py:absent"', TASK, "no such function"),
        ('factory = "./mine.py:build"\narguments = { clases = 2 }', TASK, r"cannot be called.*clases.*\(classes=2\)"),
        ("trained = true", TASK, "names no model.*--model"),
    ],
)
def test_what_a_space_lacks_is_said(tmp_path: Path, model: str, data: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_bundle(space(tmp_path, model, data))
    assert "\n" not in str(caught.value)


def test_a_package_missing_inside_a_factory_names_the_extra(tmp_path: Path) -> None:
    mine = space(tmp_path, 'factory = "./mine.py:needs_package"', TASK, extras='["bert"]')
    for with_data in (True, False):
        with pytest.raises(MissingExtra, match=r"haq\[bert\]"):
            load_bundle(mine, with_data=with_data)


def test_paths_that_do_not_exist_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--weights: weights do not exist"):
        load_bundle(load_space("resnet18"), weights=tmp_path / "w.pt")
    with pytest.raises(InputError, match="--data: data do not exist"):
        load_bundle(load_space("resnet18"), data=tmp_path / "photos")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "w.pt")
    mine = space(tmp_path, data=TASK)
    with pytest.raises(InputError, match="does not fit the model"):
        load_bundle(mine, weights=tmp_path / "w.pt")


def test_an_input_that_the_model_does_not_take_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not run on the space's inputs.*3x2x2"):
        load_bundle(with_input(space(tmp_path), "3x2x2"), with_data=False)


def test_example_inputs_follow_their_specs() -> None:
    cpu = torch.device("cpu")
    tokens = (
        InputSpec(name="input_ids", shape=(7,), dtype="int64", high=50),
        InputSpec(name="attention_mask", shape=(7,), dtype="int64"),
    )
    named = example_inputs(tokens, cpu)
    assert isinstance(named, dict)
    assert named["input_ids"].shape == (1, 7)
    assert 0 <= int(named["input_ids"].min()) <= int(named["input_ids"].max()) < 50
    assert named["attention_mask"].tolist() == [[1] * 7]
    positional = example_inputs((InputSpec(shape=(3, 4, 4)),), cpu)
    assert isinstance(positional, tuple)
    assert positional[0].shape == (1, 3, 4, 4)
    assert positional[0].dtype == torch.float32
