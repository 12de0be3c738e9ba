"""Judging: one pass per model and one of FP32 per split, whatever drives the search, users' metrics included."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from haq.accuracy import Failure, Reading
from haq.errors import InputError
from haq.nn.judge import Judge, choose_driver
from haq.nn.metrics import Outputs
from haq.nn.task import Batch, CallableTask, ClassificationTask
from haq.nn.user_metrics import UserMetric, load_metric
from haq.quality import AGREEMENT, KL, LOSS, TOP1, Direction

# Softmax: 3/4 and 1/4. The labels are what the larger one says, but for the last.
INPUTS = torch.tensor([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0], [1.0, 3.0]]).log()
LABELS = torch.tensor([0, 1, 0, 0])
TASK = ClassificationTask(
    {"search": (Batch((INPUTS[:3],), LABELS[:3]), Batch((INPUTS[3:],), LABELS[3:]))}, ((INPUTS,),), "hash"
)


class Passes(nn.Module):
    """Adds an offset to its input and counts its calls."""

    def __init__(self, offset: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.calls, self.offset = 0, torch.tensor(offset)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.offset


def judge(
    name: str | None = None,
    direction: Direction | Mapping[str, Direction] | None = None,
    *,
    task: Any = TASK,
    user: UserMetric | None = None,
    fp32: nn.Module | None = None,
) -> Judge:
    return Judge(task, choose_driver(task, user, name, direction), lambda: fp32 or Passes())


def read(judged: Reading | Failure) -> Reading:
    assert isinstance(judged, Reading)
    return judged


def test_fp32_runs_once_per_split_and_a_candidate_once() -> None:
    fp32, candidate = Passes(), Passes((10.0, 0.0))
    judged = judge(fp32=fp32)
    for _ in range(3):
        found = read(judged(candidate, "search"))
    assert fp32.calls == 2  # one pass over two batches
    assert candidate.calls == 3 * 2
    assert found.report is not None
    assert found.report.value(AGREEMENT) == 0.5  # class 0 throughout; FP32 says 0, 1, 0, 1


def test_a_pass_of_fp32_serves_as_the_reference() -> None:
    fp32 = Passes()
    judged = judge(fp32=fp32)
    judged(Passes(), "search", is_fp32=True)
    judged(Passes(), "search")
    assert fp32.calls == 0


def test_top1_drives_unless_something_else_is_asked() -> None:
    found = read(judge()(Passes(), "search"))
    assert np.asarray(found.scores).tolist() == [1, 1, 1, 0]
    assert found.report is not None
    assert found.report.value(TOP1) is None  # it is the main figure already
    # The label's chance is 3/4 three times and 1/4 once.
    assert found.report.value(LOSS) == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)


@pytest.mark.parametrize(("name", "direction"), [(LOSS, "minimize"), (KL, "minimize"), (AGREEMENT, "maximize")])
def test_any_metric_of_the_registry_drives_with_one_score_per_sample(name: str, direction: Direction) -> None:
    driver = choose_driver(TASK, None, name, None)
    assert (driver.name, driver.direction) == (name, direction)
    found = read(judge(name)(Passes((0.1, 0.0)), "search"))
    assert found.report is not None
    assert np.asarray(found.scores).shape == (4,)
    assert float(np.mean(found.scores)) == found.report.value(name)
    assert found.is_continuous == (name != AGREEMENT)
    assert found.report.value(TOP1) == 0.75


def test_a_loss_that_is_undefined_is_a_failure_with_the_number_of_samples() -> None:
    found = judge(LOSS)(Passes((math.inf, 0.0)), "search")
    assert found == Failure("loss is unknown: the outputs of 4 of 4 samples are not finite", 4)
    accuracy = read(judge()(Passes((math.inf, 0.0)), "search"))
    assert np.asarray(accuracy.scores).tolist() == [0, 0, 0, 0]
    assert accuracy.report is not None
    assert accuracy.report.not_finite == 4


MODULE = '''
import numpy as np
import torch

def perplexity(outputs, labels):
    return float(torch.nn.functional.cross_entropy(outputs, labels).exp())

def squared(outputs, labels):
    return ((outputs.softmax(1)[:, 1] - labels) ** 2).numpy()

def several(outputs, labels):
    right = (outputs.argmax(1) == labels).float()
    return {"f1": right.mean(), "loss": 0.5, "lucky": np.nan}

def forgetful(outputs, labels):
    pass

class Right:
    """Follows torchmetrics' protocol to the letter, without torchmetrics."""
    higher_is_better = True

    def __init__(self):
        self.reset()

    def reset(self):
        self.right, self.seen = 0, 0

    def update(self, preds, target):
        self.right += int((preds.argmax(1) == target).sum())
        self.seen += len(target)

    def compute(self):
        return torch.tensor(self.right / self.seen)

class Wrong(Right):
    higher_is_better = False

    def compute(self):
        return 1 - super().compute()

class PerClass(Right):
    def compute(self):
        return torch.ones(2)

class Sized(Right):
    def __init__(self, classes):
        super().__init__()

sized = Sized(2)
number = 3

class Nothing:
    pass
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "judge_own_metrics.py").write_text(MODULE)
    return folder


@pytest.fixture
def load(own: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(own)
    monkeypatch.syspath_prepend(own)
    return lambda name: load_metric(f"judge_own_metrics:{name}")


def test_a_function_gets_the_whole_split_and_its_number_counts(load: Any) -> None:
    judged = judge("own:perplexity", "minimize", user=load("perplexity"))
    found = read(judged(Passes(), "search"))
    # exp of the mean loss: the product of 1/chance, to the power of 1/4.
    assert found.scores == pytest.approx((1 / (0.75**3 * 0.25)) ** 0.25, rel=1e-6)
    assert found.report is not None
    assert found.report.value(TOP1) == 0.75


def test_a_function_may_return_one_score_per_sample(load: Any) -> None:
    found = read(judge("own:squared", "minimize", user=load("squared"))(Passes(), "search"))
    assert found.scores == pytest.approx([1 / 16, 1 / 16, 1 / 16, 9 / 16])


def test_of_a_mapping_the_first_drives_and_the_others_are_recorded_with_a_direction(load: Any) -> None:
    found = read(judge("own:several", user=load("several"))(Passes(), "search"))
    assert (found.metric, found.scores) == ("f1", 0.75)
    assert found.report is not None
    others = {figure.name: (figure.value, figure.direction) for figure in found.report.figures}
    assert others["loss"] == (0.5, "minimize")  # the user's, in place of haq's
    assert others["lucky"] == (None, "maximize")  # unknown, not NaN
    assert others[KL] == (0.0, "minimize")


@pytest.mark.parametrize(("name", "value", "direction"), [("Right", 0.75, "maximize"), ("Wrong", 0.25, "minimize")])
def test_a_metric_object_is_reset_updated_by_batches_and_states_its_direction(
    load: Any, name: str, value: float, direction: Direction
) -> None:
    metric = load(name)
    assert choose_driver(TASK, metric, f"own:{name}", None).direction == direction
    judged = judge(f"own:{name}", user=metric)
    for _ in range(2):  # the second split does not add to the first
        assert read(judged(Passes(), "search")).scores == pytest.approx(value)


def test_an_object_made_by_the_user_works_where_its_class_needs_arguments(load: Any) -> None:
    assert read(judge("own:sized", user=load("sized"))(Passes(), "search")).scores == pytest.approx(0.75)
    with pytest.raises(InputError, match=r"takes arguments.*metric = Sized\(\.\.\.\)"):
        load("Sized")


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
def test_torchmetrics_itself_gives_what_counting_gives(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "judge_torchmetrics.py").write_text(
        "from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError\n"
        "micro = MulticlassAccuracy(num_classes=2, average='micro')\n"
        "per_class = MulticlassAccuracy(num_classes=2, average=None)\n"
        "calibration = MulticlassCalibrationError(num_classes=2, n_bins=10)\n"
    )
    monkeypatch.chdir(own)
    monkeypatch.syspath_prepend(own)
    micro = load_metric("judge_torchmetrics:micro")
    assert micro.direction == "maximize"
    assert read(judge("own:micro", user=micro)(Passes(), "search")).scores == pytest.approx(0.75)
    error = load_metric("judge_torchmetrics:calibration")
    assert error.direction == "minimize"
    # Confidence is 3/4 throughout and 3 of 4 are right: perfectly calibrated.
    assert read(judge("own:calibration", user=error)(Passes(), "search")).scores == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="several numbers"):
        judge("own:per_class", user=load_metric("judge_torchmetrics:per_class"))(Passes(), "search")


def test_a_users_metric_is_not_asked_about_outputs_that_are_not_finite(load: Any) -> None:
    found = judge("own:Right", user=load("Right"))(Passes((math.nan, 0.0)), "search")
    assert isinstance(found, Failure)
    assert "4 of 4 samples are not finite" in found.reason


def test_outputs_that_are_no_logits_are_the_users_metrics_alone(load: Any) -> None:
    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, None].expand(-1, -1, 5)

    pixels = LABELS[:, None].expand(-1, 5)
    task = ClassificationTask({"search": (Batch((INPUTS,), pixels),)}, ((INPUTS,),), "hash")
    metric = UserMetric(lambda outputs: float((outputs.parts[0].argmax(1) == outputs.labels[0]).double().mean()))
    found = read(judge("own:pixels", task=task, user=metric, fp32=Dense())(Dense(), "search"))
    assert (found.scores, found.report) == (0.75, None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("forgetful", "returned neither a number nor one score per sample"),
        ("PerClass", "several numbers"),
    ],
)
def test_what_is_no_figure_is_one_line(load: Any, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        judge("own:metric", user=load(name))(Passes(), "search")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent", "no such function"),
        ("number", "of type int"),
        ("Nothing", "class is no metric"),
        ("9", "not a metric"),
    ],
)
def test_a_reference_to_something_else_is_one_line(load: Any, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(name)


def test_a_direction_that_contradicts_the_metric_is_refused(load: Any) -> None:
    with pytest.raises(InputError, match=r"own direction.*got 'maximize'.*minimize"):
        choose_driver(TASK, None, LOSS, "maximize")
    with pytest.raises(InputError, match="own direction"):
        choose_driver(TASK, load("Wrong"), "own:Wrong", "maximize")
    assert choose_driver(TASK, load("perplexity"), "own:perplexity", "minimize").direction == "minimize"
    assert choose_driver(TASK, load("perplexity"), "own:perplexity", None).direction == "maximize"


def callable_task(result: object) -> CallableTask:
    return CallableTask(lambda model: result, ((INPUTS,),))


def test_an_evaluate_function_may_return_several_metrics() -> None:
    task = callable_task({"f1": 0.5, "perplexity": torch.tensor(3.0)})
    found = read(judge(task=task)(Passes(), "search"))
    assert (found.metric, found.scores) == ("f1", 0.5)
    table: dict[str, Direction] = {"perplexity": "minimize", "f1": "maximize"}
    asked = judge("perplexity", table, task=task)
    found = read(asked(Passes(), "search"))
    assert (found.metric, found.scores) == ("perplexity", 3.0)
    assert choose_driver(task, None, "perplexity", table).direction == "minimize"
    assert found.report is not None
    assert [(f.name, f.value, f.direction) for f in found.report.figures] == [("f1", 0.5, "maximize")]


@pytest.mark.parametrize(
    ("result", "name", "says"),
    [
        ({}, None, "without the metric that drives"),
        ({"f1": 0.5}, "f2", "an entry 'f2'"),
        ({1: 0.5}, None, "without the metric that drives"),
        ({"f1": "good"}, None, "neither a number nor"),
        (0.5, "f1", "one metric without a name"),
    ],
)
def test_a_mapping_that_does_not_fit_is_one_line(result: object, name: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        judge(name, task=callable_task(result))(Passes(), "search")


def test_a_table_of_directions_must_name_what_drives() -> None:
    with pytest.raises(InputError, match=r"leaves out the metric.*or set accuracy.metric"):
        choose_driver(callable_task({"f1": 1.0}), None, None, {"f1": "minimize"})


def test_a_task_that_measures_by_itself_takes_no_other_metric() -> None:
    class Own:
        metric, data_hash = "bleu", "hash"

        def calibration(self) -> tuple[tuple[Tensor], ...]:
            return ((INPUTS,),)

        def scores(self, model: nn.Module, split: str) -> float:
            return 0.25

    assert read(judge(task=Own())(Passes(), "search")).scores == 0.25
    with pytest.raises(InputError, match="measures something else; got 'loss'; expected bleu"):
        choose_driver(Own(), None, LOSS, None)
    with pytest.raises(InputError, match="takes no metric of the user's"):
        choose_driver(Own(), UserMetric(lambda outputs: 1.0), "own:metric", None)
    with pytest.raises(InputError, match=r"got 'f1'; expected top-1 accuracy, loss, kl, agreement"):
        choose_driver(TASK, None, "f1", None)


def test_batches_of_different_shapes_need_an_object_and_say_so(load: Any) -> None:
    outputs = Outputs((torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), (torch.zeros(1, 3), torch.zeros(1, 4)))
    with pytest.raises(InputError, match=r"differ in shape.*update, compute and reset"):
        load("perplexity").value(outputs)
