"""The search under other metrics: minimized ones, figures beside them, limits on these, readings without a result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_fakes import Accuracy, problem, target, workload

from haq.accuracy import Failure, Reading, compare
from haq.constraints import Constraints
from haq.engine.events import Event, Validated
from haq.engine.loop import run_search
from haq.engine.problem import Problem, SearchOptions
from haq.errors import InputError
from haq.front import front, pick
from haq.history import read_history, summarize
from haq.outputs import fronts
from haq.precision import Assignment
from haq.quality import AGREEMENT, KL, WORST_CLASS, ClassDrops, Quality, QualityReport
from haq.rundir import HISTORY_FILE, Run, read_run

FAST = SearchOptions(trials=20, storage="none")


class Report(Accuracy):
    """Accuracy that knows more: KL and disagreement are the fraction it loses; the worst class loses four times it."""

    def __call__(self, executed: Assignment, split: str) -> Reading:  # type: ignore[override]
        accuracy = super().__call__(executed, split)
        lost = 0.9 - accuracy
        report = QualityReport(
            (
                Quality(KL, "minimize", lost),
                Quality(AGREEMENT, "maximize", 1 - lost),
                Quality(WORST_CLASS, "minimize", 400 * lost),
            ),
            ClassDrops((0.0, 400 * lost), "cat", 50),
        )
        return Reading(accuracy, report)


class Loss(Accuracy):
    """1 nat at FP32 and more below; no result where a layer runs in fp16."""

    def __init__(self, *, fails_on: tuple[str, ...] = ("search", "validation")) -> None:
        super().__init__()
        self.fails_on = fails_on

    def __call__(self, executed: Assignment, split: str) -> Reading | Failure:  # type: ignore[override]
        accuracy = super().__call__(executed, split)
        if split in self.fails_on and any(executed.precision(n).weight.bits == 16 for n in executed):
            return Failure("loss is unknown: the outputs of 3 of 200 samples are not finite", 200)
        return Reading(np.full(200, 1 + 0.9 - accuracy))


def minimized(measure: Loss, **changes: object) -> Problem:
    asked = problem(measure=measure)
    provenance = {**asked.provenance, "metric": "loss", "direction": "minimize"}
    return replace(asked, provenance=provenance, direction="minimize", may_fail=True, **changes)  # type: ignore[arg-type]


def search(tmp_path: Path, asked: Problem, options: SearchOptions = FAST, name: str = "run") -> Run:
    return read_run(run_search(asked, options, tmp_path / name))


def untimed(run: Run) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run.path / HISTORY_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def test_the_drop_of_a_minimized_metric_is_positive_where_it_is_larger() -> None:
    measured = compare(1.5, 1.75, "search", "minimize")
    assert (measured.accuracy, measured.drop_points) == (1.75, pytest.approx(25.0))
    samples = compare(np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5, 3.5]), "search", "minimize")
    assert samples.drop_points == pytest.approx(50.0)
    assert samples.drop_interval is not None
    assert (samples.drop_interval.low, samples.drop_interval.high) == (pytest.approx(50), pytest.approx(50))


def test_zeros_of_a_continuous_metric_are_no_counts_of_right_and_wrong() -> None:
    same = compare(np.zeros(200), np.zeros(200), "search", "minimize", is_continuous=True)
    assert same.drop_interval is not None
    assert (same.drop_interval.low, same.drop_interval.high) == (0.0, 0.0)
    counted = compare(np.zeros(200), np.zeros(200), "search", "minimize")
    assert counted.drop_interval is not None
    assert counted.drop_interval.high > 0  # an error rate of 0 on 200 samples is not known to be 0


def test_a_single_score_that_is_no_zero_or_one_has_no_interval() -> None:
    measured = compare(np.array([0.5]), np.array([0.25]), "search")
    assert (measured.drop_points, measured.drop_interval, measured.accuracy_interval) == (25.0, None, None)


def test_a_minimized_metric_gives_the_front_that_its_mirror_image_gives(tmp_path: Path) -> None:
    accurate = search(tmp_path, problem(), name="accuracy")
    loss = search(tmp_path, minimized(Loss(fails_on=())), name="loss")
    assert [c.requested for c in loss.history.candidates] == [c.requested for c in accurate.history.candidates]
    losses = [[p.losses for p in front(run.history.candidates, "plain")] for run in (loss, accurate)]
    assert np.array(losses[0]) == pytest.approx(np.array(losses[1]))
    assert (loss.metric.direction, loss.metric.is_fraction) == ("minimize", False)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_a_candidate_without_a_result_is_infeasible_measured_once_and_counted(tmp_path: Path, sampler: str) -> None:
    measure = Loss()
    options = replace(FAST, sampler=sampler, trials=14)
    run = search(tmp_path, minimized(measure), options)
    failed = [c.on("plain") for c in run.history.candidates if c.on("plain").failure is not None]
    assert failed
    assert all(not r.is_feasible and r.measurement is None for r in failed)
    assert "3 of 200 samples" in failed[0].violations[0]
    assert all(p.result.failure is None for p in front(run.history.candidates, "plain"))
    calls = [signature for signature, split in measure.calls if split == "search"]
    assert len(calls) == len(set(calls)) == 1 + 14
    summary = summarize(run.history)
    assert summary.sample_forwards == 200 * len(measure.calls)
    assert summary.infeasible == 0  # by cost alone
    assert "NaN" not in (run.path / HISTORY_FILE).read_text()


def test_a_run_with_failures_that_is_resumed_has_the_history_of_an_unbroken_one(tmp_path: Path) -> None:
    search(tmp_path, minimized(Loss()), replace(FAST, trials=8), "broken")
    broken = search(tmp_path, minimized(Loss()), name="broken")
    whole = search(tmp_path, minimized(Loss()), name="whole")
    candidates = [[line for line in untimed(run) if line["kind"] == "candidate"] for run in (broken, whole)]
    assert candidates[0] == candidates[1]


def test_a_held_out_measurement_without_a_result_is_said_and_not_repeated(tmp_path: Path) -> None:
    measure, events = Loss(fails_on=("validation",)), list[Event]()
    path = run_search(minimized(measure), FAST, tmp_path / "run", events.append)
    said = [event.failure for event in events if isinstance(event, Validated) and event.failure is not None]
    assert said
    history = read_history(path / HISTORY_FILE)
    assert len(history.unvalidated) == len(said)
    assert all(history.validation(signature) is None for signature in history.unvalidated)
    before = len(measure.calls)
    run_search(minimized(measure), FAST, tmp_path / "run")
    assert len(measure.calls) == before


def test_a_model_whose_fp32_has_no_result_cannot_be_searched(tmp_path: Path) -> None:
    asked = replace(minimized(Loss()), measure=lambda executed, split: Failure("loss is unknown", 4))
    with pytest.raises(InputError, match="FP32 model cannot be measured: loss is unknown"):
        search(tmp_path, asked)


def test_figures_beside_the_main_one_are_in_the_history_with_fp32s_and_in_every_output(tmp_path: Path) -> None:
    run = search(tmp_path, problem(measure=Report()))
    uniform4 = run.history.candidates[3].on("plain").measurement
    assert uniform4 is not None
    assert uniform4.quality is not None
    # 2.5 points lost (see test_search).
    assert uniform4.quality.figures == (
        Quality(KL, "minimize", pytest.approx(0.025), 0.0),  # type: ignore[arg-type]
        Quality(AGREEMENT, "maximize", pytest.approx(0.975), 1.0),  # type: ignore[arg-type]
        Quality(WORST_CLASS, "minimize", pytest.approx(10.0), 0.0),  # type: ignore[arg-type]
    )
    header, *rows = (run.path / "front.csv").read_text().splitlines()
    smallest = dict(zip(header.split(","), rows[0].split(","), strict=True))
    assert (smallest["metric"], smallest["direction"]) == ("accuracy", "maximize")
    assert float(smallest["worst_class_drop_points"]) == pytest.approx(10.0)
    assert float(smallest["validation_kl_nats"]) == pytest.approx(0.025)
    assert (smallest["worst_class"], smallest["worst_class_samples"], smallest["loss"]) == ("cat", "50", "")
    point = fronts(run)["plain"][0]
    config = json.loads((run.path / "configs" / f"{point.result.config_id}.json").read_text())
    assert config["metrics"]["accuracy"]["direction"] == "maximize"
    assert config["metrics"][AGREEMENT]["kind"] == "measured"
    assert config["metrics"][AGREEMENT]["direction"] == "maximize"
    assert config["metrics"][f"{AGREEMENT}_validation"]["split"] == "validation"
    assert config["metrics"][WORST_CLASS]["classes"]["worst"] == "cat"


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Constraints(max_class_drop_points=4), "worst class's drop 10 points exceeds the limit of 4 points"),
        (Constraints(max_kl_nats=0.01), "KL divergence from FP32 0.025 nats exceeds the limit of 0.01 nats"),
        (Constraints(max_disagreement=0.01), "disagreement with FP32 0.025 of the samples exceeds the limit of 0.01"),
    ],
)
def test_limits_on_them_keep_candidates_off_the_front_after_measuring(
    tmp_path: Path, limits: Constraints, sentence: str
) -> None:
    net = workload()
    run = search(tmp_path, problem(net, (target(net, limits),), Report()))
    assert any(sentence in text for text in run.history.candidates[3].on("plain").violations)
    # All three limits mean one point lost.
    points = front(run.history.candidates, "plain")
    assert points
    assert all(point.losses[2] <= 1 + 1e-9 for point in points)
    free = search(tmp_path, problem(net, measure=Report()), name="free").history.candidates
    assert pick(free, "plain", limits).losses[2] <= 1 + 1e-9


def test_a_limit_on_what_the_task_does_not_measure_ends_the_search_at_fp32(tmp_path: Path) -> None:
    net, measure = workload(), Accuracy()
    asked = problem(net, (target(net, Constraints(max_class_drop_points=4)),), measure)
    with pytest.raises(InputError, match="worst class's drop is limited, but unknown"):
        search(tmp_path, asked)
    assert len(measure.calls) == 2


def test_a_history_without_the_new_keys_is_read_and_goes_on(tmp_path: Path) -> None:
    run = search(tmp_path, problem())
    text = (run.path / HISTORY_FILE).read_text()
    assert not any(key in text for key in ('"quality"', '"failure"', '"direction"'))
    measurement = run.history.candidates[3].on("plain").measurement
    assert measurement is not None
    assert (measurement.quality, measurement.metric) == (None, None)
