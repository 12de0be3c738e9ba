"""The time left, from durations that a reader can multiply."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_fakes import Accuracy
from test_search_repeats import asked, sensitivities

from haq.engine.events import BaselineMeasured, CandidateDone
from haq.engine.loop import run_search
from haq.engine.pace import QUANTIZED, Left, left_s
from haq.engine.problem import SearchOptions
from haq.precision import Assignment

FP32_S = 2.0


def test_before_any_candidate_it_is_a_quarter_more_than_fp32_takes() -> None:
    left = Left(candidates=10, validations=3, per_candidate=1.5)
    assert left_s(left, FP32_S, {"baseline": [40.0]}) == pytest.approx((10 * 1.5 + 3) * 2.5)
    assert QUANTIZED == 1.25


def test_candidates_take_their_median_whatever_was_done_only_once() -> None:
    durations = {"baseline": [40.0], "sensitivity": [600.0], "candidate": [90.0, 3.0, 0.0, 0.0, 0.0, 2.0, 4.0, 2.5]}
    # 90, 4, 3, 2.5 and 2 seconds; candidates of no measurement say nothing.
    assert left_s(Left(10, 0, 7.0), FP32_S, durations) == pytest.approx(10 * 3.0)


def test_validations_take_the_median_of_their_own() -> None:
    durations = {"candidate": [1.0], "validation": [9.0, 6.0, 5.0]}
    assert left_s(Left(0, 4, 1.0), FP32_S, durations) == pytest.approx(4 * 6.0)


class Slow(Accuracy):
    """10 ms a measurement, 200 ms more for the first one of all and the first one that is quantized."""

    def __call__(self, executed: Assignment, split: str) -> np.ndarray:
        quantized = [call for call in self.calls if call[0] != self.calls[0][0]]
        is_first = not self.calls or (not quantized and executed.signature != self.calls[0][0])
        time.sleep(0.21 if is_first else 0.01)
        accuracy = super().__call__(executed, split)
        return (np.arange(200) < round(200 * accuracy)).astype(float)


def test_calibration_sensitivities_and_first_quantizations_are_no_measure_of_the_rest(tmp_path: Path) -> None:
    def slow_sensitivities(*arguments: object) -> object:
        time.sleep(0.3)
        return sensitivities(*arguments)  # type: ignore[arg-type]

    def run(trials: int) -> list[object]:
        events: list[object] = []
        problem = replace(asked(Slow()), race=None, sensitivity=slow_sensitivities)  # type: ignore[arg-type]
        run_search(problem, SearchOptions(trials=trials, storage="none"), tmp_path / "run", events.append)
        return events

    events = run(12)
    (start,) = (event for event in events if isinstance(event, BaselineMeasured))
    # 12 candidates on two targets, 10 ms each and a quarter; the first one's 210 ms would make it 3 s and more.
    assert 12 * 0.0125 <= start.estimate_s <= 12 * 2 * 0.0125 * 1.5
    fourth = [event for event in events if isinstance(event, CandidateDone)][5]
    assert fourth.left_s <= (12 - fourth.done + 12) * 2 * 0.0125 * 1.5
    # What a resumed search knows comes from the history.
    (again,) = (event for event in run(24) if isinstance(event, BaselineMeasured))
    assert 12 * 0.01 <= again.estimate_s <= 12 * 2 * 0.0125 * 1.5
