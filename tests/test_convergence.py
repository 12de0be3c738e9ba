"""When a search has converged: hypervolumes by hand."""

from __future__ import annotations

import pytest

from haq.accuracy import Z95, Interval, Measurement
from haq.candidate import Candidate, TargetResult
from haq.engine.convergence import has_converged, noise
from haq.front import Point
from haq.precision import Assignment

REFERENCE = (10.0, 10.0, 10.0)


def point(number: int, size: float, latency: float, drop: float, error: float | None = 0.5) -> Point:
    interval = None if error is None else Interval(drop - Z95 * error, drop + Z95 * error)
    measurement = Measurement("search", 100, 0.9, drop, None, interval)
    costs = {"size_bytes": size, "latency_ms": latency}
    executed = Assignment.of({"a": number})
    result = TargetResult("t", executed, (), costs, measurement)
    return Point(Candidate(number, "haq", executed, (result,)), result)


def test_the_noise_is_what_a_standard_error_less_of_drop_is_worth() -> None:
    # One member: 0.5 points of drop less over an area of 5 x 5; four equal errors average to half of one.
    assert noise([point(0, 5, 5, 2)], REFERENCE) == pytest.approx(5 * 5 * 0.5)
    stairs = [point(i, 2 + 2 * i, 8 - 2 * i, 2) for i in range(4)]
    area = 8 * 2 + 6 * 2 + 4 * 2 + 2 * 2  # from the widest step down
    assert noise(stairs, REFERENCE) == pytest.approx(area * 0.25)


def test_without_intervals_there_is_no_noise_to_hide_in() -> None:
    assert noise([point(0, 5, 5, 2, None)], REFERENCE) == 0
    assert noise([], REFERENCE) == 0


def test_a_gain_within_the_noise_has_converged_and_one_beyond_has_not() -> None:
    start = point(0, 5, 5, 2)
    small, large = point(1, 5, 5, 1.7), point(2, 3, 5, 2)
    assert has_converged([[start, small]], [1], [REFERENCE])
    assert not has_converged([[start, large]], [1], [REFERENCE])


def test_every_target_must_have_converged() -> None:
    start, large = point(0, 5, 5, 2), point(2, 3, 5, 2)
    assert not has_converged([[start], [start, large]], [1, 1], [REFERENCE, REFERENCE])


def test_a_front_that_is_still_empty_has_not_converged() -> None:
    assert not has_converged([[]], [0], [REFERENCE])
