"""Every sampler, raced and guided: a seed repeats its run, and one that was stopped or killed ends the same way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from search_fakes import POINTS_LOST, Raced, problem, target, workload

from haq.engine.loop import run_search
from haq.engine.problem import Problem, SearchOptions
from haq.engine.samplers import SAMPLERS
from haq.errors import InputError
from haq.front import front
from haq.history import summarize
from haq.precision import Assignment
from haq.rundir import FRONT_FILE, HISTORY_FILE, read_run
from haq.sensitivity import Effect, Sensitivity

SIX = ("a", "b", "c", "d", "e", "f")
QUICK = [name for name in SAMPLERS if name != "gp"]
"""GP takes a second per trial; test_search resumes it once."""

KILLED = """
import os, signal, sys
from pathlib import Path
from test_search_repeats import asked, options_of
from search_fakes import Raced
from haq.engine.loop import run_search

class Killed(Raced):
    def scores(self, executed, split):
        if len(self.calls) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().scores(executed, split)

run_search(asked(Killed()), options_of(sys.argv[1]), Path(sys.argv[2]))
"""


def options_of(sampler: str) -> SearchOptions:
    return SearchOptions(trials=50, sampler=sampler, storage="none")


def asked(measure: Raced) -> Problem:
    """Two targets that execute some layers alike, candidates that race, sensitivities that are near the truth."""
    net = workload(SIX)
    targets = (target(net), target(net, name="other", no_int4=("a", "b")))
    return replace(problem(net, targets, measure), sensitivity=sensitivities)


def sensitivities(pieces: Sequence[Assignment], pairs: int, progress: Callable[[int, int], None]) -> Sensitivity:
    """Each layer's own loss, as the fakes' accuracy has it, in hundredths of a nat."""
    place = {name: i for i, name in enumerate(SIX)}

    def lost(piece: Assignment) -> float:
        return sum(POINTS_LOST[piece.precision(n).weight.bits] * (1 + place[n]) for n in piece) / 100

    effects = {piece: Effect(lost(piece), None, 100) for piece in pieces}
    return Sensitivity("kl", 100, effects, (), 100.0 * len(pieces))


def untimed(path: Path) -> list[dict[str, object]]:
    """The history's lines without what differs between two equal runs."""
    lines = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


@pytest.mark.parametrize("sampler", QUICK)
def test_the_same_seed_gives_the_same_history_and_front(tmp_path: Path, sampler: str) -> None:
    for name in ("one", "two"):
        run_search(asked(Raced()), options_of(sampler), tmp_path / name)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "two")
    assert (tmp_path / "one" / FRONT_FILE).read_bytes() == (tmp_path / "two" / FRONT_FILE).read_bytes()


@pytest.mark.parametrize("sampler", QUICK)
def test_a_run_that_is_stopped_at_any_moment_ends_with_the_same_front(tmp_path: Path, sampler: str) -> None:
    run_search(asked(Raced()), options_of(sampler), tmp_path / "whole")
    for stop in (0, 1, 5, 13, 20, 31):  # calls of the measure since the last start
        try:
            run_search(asked(Raced(stop_after=stop)), options_of(sampler), tmp_path / "broken")
        except KeyboardInterrupt:
            continue
    run_search(asked(Raced()), options_of(sampler), tmp_path / "broken")
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")
    assert (tmp_path / "broken" / FRONT_FILE).read_bytes() == (tmp_path / "whole" / FRONT_FILE).read_bytes()


def test_the_default_sampler_is_guided_and_its_candidates_race(tmp_path: Path) -> None:
    run_search(asked(Raced()), options_of("haq"), tmp_path / "run")
    history = read_run(tmp_path / "run").history
    pieces = 6 * 3  # six layers at 4, 8 and 16 bits; what no_int4 executes is among them
    assert history.sensitivity_forwards == 100 * pieces
    assert summarize(history).stopped_early > 0


@pytest.mark.parametrize("sampler", ["haq", "nsga2"])
def test_a_killed_process_is_resumed_to_the_same_front(tmp_path: Path, sampler: str) -> None:
    command = [sys.executable, "-c", KILLED, sampler, str(tmp_path / "broken"), "40"]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken" / FRONT_FILE).exists()
    for name in ("broken", "whole"):
        run_search(asked(Raced()), options_of(sampler), tmp_path / name)
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")
    assert (tmp_path / "broken" / FRONT_FILE).read_bytes() == (tmp_path / "whole" / FRONT_FILE).read_bytes()


def test_without_seeds_every_candidate_is_the_samplers(tmp_path: Path) -> None:
    plain = replace(options_of("random"), trials=10, seeds=False)
    run_search(asked(Raced()), plain, tmp_path / "plain")
    run = read_run(tmp_path / "plain")
    assert {candidate.origin for candidate in run.history.candidates} == {"random"}
    assert run.info["search"]["seeds"] is False
    assert front(run.history.candidates, "plain")
    with pytest.raises(InputError, match="seeds"):
        run_search(asked(Raced()), replace(plain, seeds=True), tmp_path / "plain")
