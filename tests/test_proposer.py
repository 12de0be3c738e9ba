"""What the default sampler asks and when, and its sensitivities: measured once, on record, never again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from nets import residual
from search_fakes import Accuracy, target, workload
from search_fakes import problem as fake_problem
from test_guide import lost
from test_search_repeats import SIX, untimed

from haq.constraints import Constraints
from haq.engine.convergence import PATIENCE
from haq.engine.events import Event, Finished, Notice, SensitivityMeasured
from haq.engine.loop import run_search
from haq.engine.problem import Problem, SearchOptions, baseline_costs, reference_point
from haq.engine.proposer import FILLS_EVERY
from haq.engine.sensing import PAIRS
from haq.engine.study import TargetStudy
from haq.engine.targets import profile_target
from haq.front import front, measured_points
from haq.hardware.profile import load_profile
from haq.history import summarize
from haq.pareto import hypervolume
from haq.precision import Assignment
from haq.rundir import HISTORY_FILE, SENSITIVITY_FILE, WORKLOAD_FILE, read_run
from haq.sensitivity import Effect, Sensitivity, read_sensitivity
from haq.space import build_space
from haq.workload import Workload

NET = residual()
OPTIONS = SearchOptions(trials=30, storage="none")


class Sensed:
    """Measures made-up sensitivities, counts its calls, and can be interrupted halfway."""

    def __init__(self, *, is_stopped: bool = False) -> None:
        self.calls, self._is_stopped = 0, is_stopped

    def __call__(self, pieces: Sequence[Assignment], pairs: int, progress: Callable[[int, int], None]) -> Sensitivity:
        self.calls += 1
        progress(1, len(pieces))
        if self._is_stopped:
            raise KeyboardInterrupt
        assert pairs == PAIRS
        return Sensitivity("kl", 64, {piece: Effect(lost(piece), None, 64) for piece in pieces}, (), 123.25)


def problem(sensed: Sensed | None, *names: str, measure: Accuracy | None = None) -> Problem:
    targets = tuple(profile_target(NET, load_profile(name)) for name in names or ("reference",))
    return Problem(
        NET, build_space(NET), targets, measure or Accuracy(), spec={"scope": {"space": "residual"}}, sensitivity=sensed
    )


def origins(path: Path) -> list[str]:
    return [candidate.origin for candidate in read_run(path).history.candidates]


def test_seeds_come_first_then_the_predicted_front_then_the_surrogate_and_every_eighth_is_optunas(
    tmp_path: Path,
) -> None:
    run_search(problem(Sensed()), OPTIONS, tmp_path / "run")
    found = origins(tmp_path / "run")
    phases = [kind for kind, _ in itertools.groupby(o.partition(":")[0] for o in found)]
    assert phases[:3] == ["seed", "predicted", "surrogate"]
    assert set(phases) == {"seed", "predicted", "surrogate", "tpe"}
    assert found[:4] == [f"seed:uniform{bits}" for bits in (8, 4, 16, 32)]
    searched = [(number, o) for number, o in enumerate(found) if o in ("surrogate", "tpe")]
    assert all(o == "tpe" for number, o in searched if number % FILLS_EVERY == FILLS_EVERY - 1)
    # Optuna fills in elsewhere only once the guide expects nothing more.
    others = [o for number, o in searched if number % FILLS_EVERY != FILLS_EVERY - 1]
    assert others == sorted(others)


def test_every_targets_study_is_asked_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = TargetStudy.ask

    def recorded(self: TargetStudy, number: int) -> tuple[int, ...]:
        asked.append(id(self))
        return ask(self, number)

    monkeypatch.setattr(TargetStudy, "ask", recorded)
    run_search(problem(Sensed(), "reference", "a100"), replace(OPTIONS, trials=45), tmp_path / "run")
    assert len(set(asked)) == 2


def test_sensitivities_are_measured_once_written_and_on_record(tmp_path: Path) -> None:
    sensed, events = Sensed(), list[Event]()
    for trials in (8, 12, 12):
        run_search(problem(sensed), replace(OPTIONS, trials=trials), tmp_path / "run", events.append)
    assert sensed.calls == 1
    assert len(read_sensitivity(tmp_path / "run" / SENSITIVITY_FILE).effects) == 9  # three layers at 4, 8 and 16 bits
    assert Workload.from_json((tmp_path / "run" / WORKLOAD_FILE).read_text()) == NET
    lines = [json.loads(line) for line in (tmp_path / "run" / HISTORY_FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines[:2]] == ["baseline", "sensitivity"]
    assert sum(line["kind"] == "sensitivity" for line in lines) == 1
    assert [e.sample_forwards for e in events if isinstance(e, SensitivityMeasured)] == [123.25] * 3
    history = read_run(tmp_path / "run").history
    without = replace(history, sensitivity_forwards=0.0)
    assert summarize(history).sample_forwards - summarize(without).sample_forwards == 123


@pytest.mark.parametrize("stop", [0, 1, 6, 14, 22])
def test_a_search_that_is_stopped_anywhere_goes_on_to_the_same_history(tmp_path: Path, stop: int) -> None:
    run_search(problem(Sensed()), OPTIONS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_search(problem(Sensed(is_stopped=True)), OPTIONS, tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        run_search(problem(Sensed(), measure=Accuracy(stop_after=stop)), OPTIONS, tmp_path / "broken")
    run_search(problem(Sensed()), OPTIONS, tmp_path / "broken")
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")


def test_a_search_that_is_killed_before_sensitivities_are_on_record_counts_them_when_it_goes_on(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        run_search(problem(Sensed()), OPTIONS, tmp_path / name)
    path = tmp_path / "broken" / HISTORY_FILE
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])  # FP32; the file of sensitivities is there
    sensed = Sensed()
    run_search(problem(sensed), OPTIONS, tmp_path / "broken")
    assert sensed.calls == 0
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")


def test_without_sensitivities_the_search_says_so_and_goes_on_with_seeds_and_tpe(tmp_path: Path) -> None:
    events: list[Event] = []
    run_search(problem(None), replace(OPTIONS, trials=20), tmp_path / "run", events.append)
    (notice,) = (event.text for event in events if isinstance(event, Notice))
    assert notice == "sensitivities cannot be measured here: seeds, then tpe, propose what is measured"
    kinds = [kind for kind, _ in itertools.groupby(o.partition(":")[0] for o in origins(tmp_path / "run"))]
    assert kinds == ["seed", "tpe"]
    assert not (tmp_path / "run" / SENSITIVITY_FILE).exists()


def test_without_seeds_the_predicted_front_comes_first(tmp_path: Path) -> None:
    run_search(problem(Sensed()), replace(OPTIONS, trials=6, seeds=False), tmp_path / "run")
    assert set(origins(tmp_path / "run")) == {"predicted"}


def test_samplers_that_stand_alone_measure_no_sensitivities(tmp_path: Path) -> None:
    sensed = Sensed()
    run_search(problem(sensed), replace(OPTIONS, trials=6, sampler="random"), tmp_path / "run")
    assert sensed.calls == 0


def test_a_search_converges_only_after_enough_measurements_without_gain(tmp_path: Path) -> None:
    # Candidates over the limit on size cost nothing and say nothing: they are no patience.
    net = workload(SIX)  # 2,100 weights
    asked = fake_problem(net, (target(net, Constraints(max_size_bytes=3_200), name="reference"),))
    events: list[Event] = []
    options = SearchOptions(trials=200, sampler="random", seed=3, storage="none", until_converged=True)
    run_search(asked, options, tmp_path / "run", events.append)
    candidates = read_run(tmp_path / "run").history.candidates
    numbers = [point.candidate.number for point in measured_points(candidates, "reference")]
    assert len(candidates) > len(numbers) + 5
    (end,) = (event for event in events if isinstance(event, Finished))
    assert end.reason == "converged"
    reference = reference_point(asked.targets[0], baseline_costs(asked)["reference"])
    before = [c for c in candidates if c.number < numbers[-PATIENCE]]
    now, then = (
        hypervolume([p.losses for p in front(found, "reference")], reference) for found in (candidates, before)
    )
    assert now == pytest.approx(then, rel=1e-12)
