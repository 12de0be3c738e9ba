"""`haq.api.search` on a model that is in no list: what it writes, that it goes on, and what it says to bad input."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import haq
from haq.api import search
from haq.cli import main
from haq.errors import InfeasibleError, InputError
from haq.front import front
from haq.rundir import Run

INPUTS = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """A network that haq has never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        logits: Tensor = self.head(torch.relu(self.second(x)).mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Own().eval()


@pytest.fixture(scope="module")
def labels(model: nn.Module) -> Tensor:
    """What FP32 itself answers, so that accuracy is its agreement with FP32."""
    with torch.inference_mode():
        return model(INPUTS).argmax(dim=1)


@pytest.fixture(scope="module")
def agreement(labels: Tensor) -> Callable[[nn.Module], NDArray[np.float64]]:
    def evaluate(candidate: nn.Module) -> NDArray[np.float64]:
        right: NDArray[np.float64] = (candidate(INPUTS).argmax(dim=1) == labels).double().numpy()
        return right

    return evaluate


def run(model: nn.Module, evaluate: Callable[[nn.Module], object], out: Path, **sections: dict[str, Any]) -> Run:
    quick = {"search": {"trials": 6, "storage": "none", **sections.pop("search", {})}}
    return search(
        model, calibration=[(INPUTS,)], evaluate=evaluate, target="reference", out=out, spec={**sections, **quick}
    )


def test_a_model_in_memory_gets_a_front_and_every_file_and_stays_as_it_was(
    model: nn.Module, agreement: Callable[[nn.Module], object], tmp_path: Path
) -> None:
    before = copy.deepcopy(model.state_dict())
    found = run(model, agreement, tmp_path / "run")
    points = front(found.history.candidates, "reference")
    assert points
    assert all(p.result.measurement is not None and p.result.measurement.drop_interval is not None for p in points)
    for name in ("run.json", "history.jsonl", "front.csv", "front.png", "brief.txt"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert {p.stem for p in (tmp_path / "run" / "configs").glob("*.json")} == {p.result.config_id for p in points}
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())


def test_search_is_still_a_function_after_its_first_call(model: nn.Module, tmp_path: Path) -> None:
    two = {"search": {"trials": 2}}
    for name in ("first", "second"):
        run = haq.search(
            model, calibration=[(INPUTS,)], evaluate=lambda m: 1.0, target="a100", spec=two, out=tmp_path / name
        )
        assert run.history.candidates


def test_one_number_works_too_and_claims_no_interval(model: nn.Module, labels: Tensor, tmp_path: Path) -> None:
    def evaluate(candidate: nn.Module) -> float:
        return float((candidate(INPUTS).argmax(dim=1) == labels).double().mean())

    found = run(model, evaluate, tmp_path / "run")
    measured = [p.result.measurement for p in front(found.history.candidates, "reference")]
    assert measured
    assert all(m is not None and m.accuracy_interval is None for m in measured)


def test_the_same_call_goes_on_and_another_search_is_refused(
    model: nn.Module, agreement: Callable[[nn.Module], object], tmp_path: Path
) -> None:
    first = run(model, agreement, tmp_path / "run")
    longer = run(model, agreement, tmp_path / "run", search={"trials": 8})
    before, after = first.history.candidates, longer.history.candidates
    assert [c.to_json() for c in after[: len(before)]] == [c.to_json() for c in before]
    assert len(after) > len(before)
    with pytest.raises(InputError, match="different search"):
        run(model, agreement, tmp_path / "run", search={"trials": 8, "seed": 1})
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(InputError, match="weights_hash"):
        run(other, agreement, tmp_path / "run", search={"trials": 8})


def test_ctrl_c_keeps_all_finished_work_and_the_same_call_goes_on(
    model: nn.Module, agreement: Callable[[nn.Module], object], tmp_path: Path
) -> None:
    calls = 0

    def interrupted(candidate: nn.Module) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return agreement(candidate)

    with pytest.raises(KeyboardInterrupt):
        run(model, interrupted, tmp_path / "run")
    assert (tmp_path / "run" / "front.png").exists()
    kept = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(kept) >= 4  # FP32 and at least three candidates
    whole = run(model, agreement, tmp_path / "run").history.candidates
    unbroken = run(model, agreement, tmp_path / "unbroken").history.candidates
    assert [c.to_json() for c in whole] == [c.to_json() for c in unbroken]


@pytest.mark.parametrize(
    ("evaluate", "sections", "says"),
    [
        (lambda m: float("nan"), {}, "not finite"),
        (lambda m: "good", {}, "number"),
        (lambda m: np.zeros(0), {}, "no samples"),
        (lambda m: 1.0, {"scope": {"pins": {"layer9": 8}}}, "layer9"),
        (lambda m: 1.0, {"accuracy": {"max_drop": 1}}, "max_drop_points"),
        (lambda m: 1.0, {"accuracy": {"metric": "f1"}}, "f1"),
        (lambda m: 1.0, {"accuracy": {"samples": 8}}, "samples"),
    ],
)
def test_bad_input_is_one_line(
    model: nn.Module, evaluate: Callable[[nn.Module], object], sections: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        run(model, evaluate, tmp_path / "run", **sections)
    assert "\n" not in str(caught.value)


def test_empty_calibration_and_an_unwritable_folder_are_one_line(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no calibration data"):
        search(model, calibration=[], evaluate=lambda m: 1.0, target="reference", out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        run(model, lambda m: 1.0, tmp_path / "file" / "run")


def test_impossible_limits_name_the_smallest_reachable_size(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="smallest reachable size is"):
        run(model, lambda m: 1.0, tmp_path / "run", deployment={"max_size_mb": 1e-5})


OWN_SPACE = """
title = "a network of one's own"
source = "this test"

[model]
factory = "./own.py:build"
trained = true
inputs = [{ shape = [1, 8, 8] }]

[data]
task = "./own.py:task"
"""

OWN_CODE = '''
"""A user's own model and data."""
import torch
from torch import nn
from haq.nn.task import Batch, ClassificationTask

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

def task(space):
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        batch = Batch((x,), build()(x).argmax(dim=1))
    return ClassificationTask({"search": (batch,), "validation": (batch,)}, ((x,),), "own-data")
'''


def test_the_command_line_searches_a_users_own_space_and_takes_no_code_from_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.toml").write_text(OWN_SPACE)
    (tmp_path / "own.py").write_text(OWN_CODE)
    space, out = str(tmp_path / "own.toml"), str(tmp_path / "run")
    arguments = ["search", "-s", space, "-t", "reference", "-t", "a100", "-n", "6", "--storage", "none", "--out", out]
    assert main([*arguments, "--pin", "3=8", "--samples", "16", "--json"]) == 0
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)["fronts"]) == {"reference", "a100"}
    assert "FP32: 100.00 % on search (n = 16)" in captured.err
    assert "the search will take about" in captured.err
    assert main(["resume", out]) == 2
    assert "--space again" in capsys.readouterr().err
    assert main(["resume", out, "--space", space]) == 0
    assert main([*arguments, "--pin", "3=8", "--max-size-mb", "0.000001"]) == 3
    capsys.readouterr()
    (tmp_path / "own.toml").write_text(OWN_SPACE + '\n[[rules]]\nlayers = "nothing"\nbits = [8]\n')
    assert main(["search", "-s", space, "-t", "a100", "--out", str(tmp_path / "other")]) == 2
    assert "'nothing'" in capsys.readouterr().err
