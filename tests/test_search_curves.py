"""How the search experiments count evaluations and read hypervolumes off a history."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from search_fakes import SampleScores, problem, workload

from haq.additivity import Additivity
from haq.engine.events import CandidateDone, SensitivityMeasured
from haq.engine.loop import run_search
from haq.engine.problem import SearchOptions
from haq.front import front
from haq.history import History
from haq.pareto import hypervolume
from haq.rundir import read_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "search"))

from curves import Budget, BudgetSpent, Forwards, curve, reached_after, volume_at

OPTIONS = SearchOptions(trials=30, sampler="random", storage="none")
BOX = (4 * 2100.0, 1 + 4 * 2.1, 10.0)
"""FP32's bytes and ms of six layers with 100 to 600 weights, and ten points."""


@pytest.fixture
def history(tmp_path: Path) -> History:
    asked = problem(workload(("a", "b", "c", "d", "e", "f")), measure=SampleScores())
    return read_run(run_search(asked, OPTIONS, tmp_path / "run")).history


def test_a_candidate_is_one_evaluation_and_fp32_none(history: History) -> None:
    found = curve(history, "plain", BOX)
    # The first candidate is FP32 itself; the others measure something new each.
    assert found.evaluations.tolist() == list(range(31))


def test_the_curve_rises_to_the_hypervolume_of_the_front(history: History) -> None:
    found = curve(history, "plain", BOX)
    assert found.hypervolume.is_monotonic_increasing
    last = hypervolume([point.losses for point in front(history.candidates, "plain")], BOX)
    assert found.hypervolume.iloc[-1] == pytest.approx(last)
    assert volume_at(found, 30) == found.hypervolume.iloc[-1]
    assert volume_at(found, -1) == 0
    assert reached_after(found, last) == found.evaluations[found.hypervolume == last].iloc[0]


def test_a_candidate_that_is_stopped_early_costs_its_samples_and_all_when_it_is_measured_again(
    history: History,
) -> None:
    assert history.baseline is not None
    whole = history.candidates[2]
    result = whole.results[0]
    assert result.measurement is not None
    part = replace(result.measurement, samples=50, of_samples=200)
    begun = replace(whole, results=(replace(result, measurement=part),))
    counter = Forwards(history.baseline.signature)
    assert [counter.of(begun), counter.of(begun), counter.of(whole), counter.of(whole)] == [50, 0, 200, 0]
    found = curve(replace(history, candidates=(begun, whole), sensitivity_forwards=300.0), "plain", BOX)
    assert found.evaluations.tolist() == [1.75, 2.75]  # 300 of sensitivities, 50, 200, by 200 samples
    assert found.hypervolume.iloc[0] == 0  # its drop is not known from as many samples as the others'
    assert found.hypervolume.iloc[1] > 0


def test_sensitivities_are_taken_off_the_budget_once(history: History) -> None:
    assert history.baseline is not None
    fp32, told = history.baseline.signature, SensitivityMeasured(3, 10, 150.0, Additivity(None, 0, None))
    first, second = (CandidateDone(candidate, 1, 1, 0.0, {}) for candidate in history.candidates[2:4])
    fresh = Budget(350, fp32, History())
    fresh(told)
    with pytest.raises(BudgetSpent):
        fresh(first)  # 150 + 200
    resumed = Budget(550, fp32, History(sensitivity_forwards=150.0))
    resumed(told)  # read from the run's folder, not measured again
    resumed(first)
    with pytest.raises(BudgetSpent):
        resumed(second)  # 150 + 200 + 200


def test_a_run_ends_when_its_budget_is_spent_and_goes_on_from_there(tmp_path: Path) -> None:
    asked = problem(workload(("a", "b", "c", "d", "e", "f")), measure=SampleScores())
    fp32 = read_run(run_search(asked, replace(OPTIONS, trials=1), tmp_path / "one")).history.baseline
    assert fp32 is not None
    before = History()
    for evaluations in (7, 12):
        with pytest.raises(BudgetSpent):
            run_search(asked, OPTIONS, tmp_path / "run", Budget(200 * evaluations, fp32.signature, before))
        before = read_run(tmp_path / "run").history
        assert curve(before, "plain", BOX).evaluations.iloc[-1] == evaluations
