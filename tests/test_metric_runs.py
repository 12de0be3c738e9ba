"""Whole runs driven by other metrics: from the command line, from Python, after an overflow of fp16, and resumed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from haq.api import search
from haq.cli import main
from haq.front import measured_points
from haq.nn.task import Batch, ClassificationTask
from haq.quality import AGREEMENT, KL, LOSS, WORST_CLASS
from haq.rundir import Run

SPACE = """
title = "a network of one's own"
source = "this test"

[model]
factory = "./own.py:build"
trained = true
inputs = [{ shape = [1, 8, 8] }]

[data]
task = "./own.py:task"
"""

CODE = '''
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

METRIC = """
import torch

def perplexity(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs, labels).exp()

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's space and metric, which is where the user stands."""
    (tmp_path / "own.toml").write_text(SPACE)
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / f"{module_of(tmp_path)}.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def module_of(folder: Path) -> str:
    """A module name of this test alone: Python keeps what it has imported."""
    return "quality_" + folder.name.replace("-", "_")


def arguments(own: Path, *more: str) -> list[str]:
    space, out = str(own / "own.toml"), str(own / "run")
    return ["search", "-s", space, "-t", "reference", "-n", "5", "--storage", "none", "--out", out, *more]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "front.csv").open() as file:
        return list(csv.DictReader(file))


def strict_json(path: Path) -> list[Any]:
    """The lines of a file as JSON, in which NaN and Infinity are errors."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_metric_of_the_users_drives_and_must_be_given_again(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric, run, space = f"{module_of(own)}:perplexity", str(own / "run"), str(own / "own.toml")
    assert main([*arguments(own, "--metric", metric, "--direction", "minimize"), "--max-drop", "50"]) == 0
    out, err = capsys.readouterr()
    assert f"minimized, a point of drop is 100 x (candidate - FP32) of {metric}" in out
    assert f"FP32: {metric} " in err
    assert {row["direction"] for row in rows(own / "run")} == {"minimize"}
    row = rows(own / "run")[0]
    assert 0 <= float(row["top1_accuracy"]) <= 1
    assert float(row["accuracy"]) == pytest.approx(math.exp(float(row["loss"])), rel=1e-6)
    brief = (own / "run" / "brief.txt").read_text()
    assert f"at most 50 points above FP32; metric {metric}, minimized" in brief
    assert main(["resume", run, "--space", space]) == 2
    assert "--metric again" in capsys.readouterr().err
    assert main(["resume", run, "--space", space, "--metric", metric]) == 0


def test_a_metric_that_was_edited_meanwhile_is_another_search(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = f"{module_of(own)}:perplexity"
    given = arguments(own, "--metric", metric, "--direction", "minimize")
    assert main(given) == 0
    edited = f"{module_of(own)}_edited"
    (own / f"{edited}.py").write_text(METRIC.replace(".exp()", ".exp() + 1"))
    capsys.readouterr()
    resumed = ["resume", str(own / "run"), "--space", str(own / "own.toml"), "--metric", f"{edited}:perplexity"]
    assert main(resumed) == 2
    assert "provenance.metric_hash" in capsys.readouterr().err


def test_a_run_of_haqs_own_metric_needs_none_again(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(own, "--metric", "loss", "--max-class-drop", "90", "--min-agreement", "0.1")) == 0
    brief = (own / "run" / "brief.txt").read_text()
    assert "no class more than 90 points below FP32; answers FP32's on at least 0.1 of the samples" in brief
    assert "metric loss, minimized; a point of drop is 100 x (candidate - FP32) of loss" in brief
    run, space = str(own / "run"), str(own / "own.toml")
    assert main(["resume", run, "--space", space]) == 0
    assert main(["resume", run, "--space", space, "--metric", "math:sqrt"]) == 2
    assert "no metric of the user's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--metric", "f1"), "expected top-1 accuracy, loss, kl, agreement, or package.module:metric"),
        (("--metric", "no_such_module_of_anyone:f1"), "cannot be found"),
        (("--metric", "MODULE:absent"), "no such function"),
        (("--metric", "MODULE:number"), "function(outputs, labels)"),
        (("--metric", "MODULE:a:b"), "accuracy.metric"),
        (("--metric", "loss", "--direction", "maximize"), "own direction"),
        (("--direction", "up"), "accuracy.direction"),
        (("--metric", "math:sqrt"), "math:sqrt"),
        (("--min-agreement", "2"), "min_agreement"),
        (("--max-class-drop", "-1"), "max_class_drop_points"),
    ],
)
def test_a_wrong_metric_is_one_line_and_leaves_nothing(
    own: Path, flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(own, *(flag.replace("MODULE", module_of(own)) for flag in flags))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert says in last
    assert "Traceback" not in err


def test_front_prints_the_other_figures_when_asked(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(own)) == 0
    capsys.readouterr()
    assert main(["front", str(own / "run"), "--quality"]) == 0
    out = capsys.readouterr().out
    assert "better: loss minimize, kl_nats minimize, agreement maximize, worst_class_drop_points minimize" in out
    fp32 = next(line.split() for line in out.splitlines() if line.split()[:1] == ["FP32"])
    assert fp32[2:5] == ["0", "1", "0"]  # after the loss: KL, agreement, worst class's drop
    assert main(["front", str(own / "run")]) == 0
    assert "kl_nats" not in capsys.readouterr().out


class Large(nn.Module):
    """Logits of +-90,000 x: beyond fp16's 65,504, but no matter to int8 or fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2) * 300)
            self.second.weight.copy_(torch.eye(2) * 300)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.relu(self.first(x)))
        return logits


# Three samples of 1 and one of 0.5, for which 45,000 is still a number of fp16.
INPUTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.0]])
BATCH = Batch((INPUTS,), torch.tensor([0, 1, 0, 0]))
TASK = ClassificationTask({"search": (BATCH,), "validation": (BATCH,)}, ((INPUTS,),), "four")


def run_large(out: Path, trials: int = 6, **accuracy: Any) -> Run:
    spec = {"accuracy": accuracy, "search": {"trials": trials, "storage": "none"}}
    return search(Large().eval(), calibration=[(INPUTS,)], evaluate=TASK, target="a100", out=out, spec=spec)


def test_where_fp16_overflows_samples_are_wrong_and_the_loss_is_unknown_not_nan(tmp_path: Path) -> None:
    run = run_large(tmp_path / "run")
    half = next(c for c in run.history.candidates if c.origin == "seed:uniform16").on("a100").measurement
    assert half is not None
    assert half.accuracy == 0.25
    assert half.quality is not None
    assert half.quality.not_finite == 3
    assert half.quality.value(LOSS) is None
    assert half.quality.value(KL) is None
    assert half.quality.value(AGREEMENT) == 0.25
    # Class 0 keeps one of three, class 1 loses its only one.
    assert half.quality.classes is not None
    assert half.quality.classes.points == (pytest.approx(200 / 3), 100.0)
    assert half.quality.value(WORST_CLASS) == 100.0
    strict_json(tmp_path / "run" / "history.jsonl")
    assert "nan" not in (tmp_path / "run" / "front.csv").read_text().lower()


def test_where_the_loss_drives_such_a_candidate_is_infeasible_and_the_search_goes_on(tmp_path: Path) -> None:
    run = run_large(tmp_path / "run", metric="loss")
    half = next(c for c in run.history.candidates if c.origin == "seed:uniform16").on("a100")
    assert half.violations == ("loss is unknown: the outputs of 3 of 4 samples are not finite",)
    assert measured_points(run.history.candidates, "a100")
    strict_json(tmp_path / "run" / "history.jsonl")


def test_a_limit_on_an_unknown_divergence_is_a_violation_with_its_reason(tmp_path: Path) -> None:
    run = run_large(tmp_path / "run", max_kl_nats=10.0)
    half = next(c for c in run.history.candidates if c.origin == "seed:uniform16").on("a100")
    assert half.violations == (
        "KL divergence from FP32 is unknown, as outputs are not finite, so its limit cannot be judged",
    )


def test_a_resumed_run_computes_fp32s_logits_anew_and_repeats_an_unbroken_one(tmp_path: Path) -> None:
    run_large(tmp_path / "broken", trials=3)
    broken = run_large(tmp_path / "broken", trials=7)
    whole = run_large(tmp_path / "whole", trials=7)
    assert [c.to_json() for c in broken.history.candidates] == [c.to_json() for c in whole.history.candidates]


def several(model: nn.Module) -> dict[str, float]:
    right = model(INPUTS).argmax(dim=1) == BATCH.labels
    return {"f1": float(right.double().mean()), "spread (px)": 2.0 - float(right.double().mean())}


@pytest.mark.parametrize(
    ("accuracy", "main_name", "other"),
    [
        ({}, "f1", "spread (px)"),
        (
            {"metric": "spread (px)", "direction": {"spread (px)": "minimize", "f1": "maximize"}},
            "spread (px)",
            "f1",
        ),
    ],
)
def test_an_evaluate_function_may_return_several_figures(
    tmp_path: Path, accuracy: dict[str, Any], main_name: str, other: str
) -> None:
    def start(evaluate: Callable[[nn.Module], object]) -> Run:
        spec = {"accuracy": accuracy, "search": {"trials": 4, "storage": "none"}}
        return search(
            Large().eval(), calibration=[(INPUTS,)], evaluate=evaluate, target="reference", out=tmp_path, spec=spec
        )

    run = start(several)
    assert run.metric.name == main_name
    row = rows(tmp_path)[0]
    assert row["metric"] == main_name
    assert float(row["accuracy"]) + float(row[f"quality_{other}"]) == pytest.approx(2.0)
    assert run.history.baseline is not None
    assert run.history.baseline.measurements["search"].accuracy == 1.0
    assert start(several).history.candidates == run.history.candidates
