"""Fronts and picks on points that can be compared by eye."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.accuracy import Measurement
from haq.candidate import Candidate, TargetResult
from haq.constraints import Constraints
from haq.errors import InfeasibleError, InputError
from haq.front import GrowingFront, front, joint_front, measured_points, pick
from haq.precision import Assignment


def candidate(number, *targets):
    """targets: (size, latency, drop or None, violations) for `t0`, `t1`, ..."""
    results = []
    for i, (size, latency, drop, *violations) in enumerate(targets):
        measurement = None if drop is None else Measurement("search", 100, 0.9 - drop / 100, drop)
        costs = {"size_bytes": size, "latency_ms": latency}
        executed = Assignment.of({"a": number, "b": i})
        results.append(TargetResult(f"t{i}", executed, (), costs, measurement, tuple(violations)))
    return Candidate(number, "tpe", Assignment.of({"a": 4}), tuple(results))


POINTS = (
    candidate(0, (100, 1.0, 0.0)),
    candidate(1, (50, 1.0, 0.5)),
    candidate(2, (60, 2.0, 0.6)),  # worse than 1 everywhere
    candidate(3, (25, 3.0, 2.0)),
    candidate(4, (10, 0.5, 0.0, "size_bytes 10 exceeds nothing")),
    candidate(5, (1, 0.1, None)),
)


def numbers(points):
    return [p.candidate.number for p in points]


def test_the_front_holds_feasible_measured_points_that_none_beats_smallest_first():
    assert numbers(front(POINTS, "t0")) == [3, 1, 0]


CORNERS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.none() | st.integers(0, 3)) | st.tuples(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.just("too large")
)


@given(st.lists(CORNERS, max_size=12))
def test_a_growing_front_is_always_the_front_of_what_it_has_seen(rows):
    seen, growing = [], GrowingFront("t0")
    for number, row in enumerate(rows):
        seen.append(candidate(number, row))
        growing.add(seen[-1])
        assert growing.points == front(seen, "t0")


def test_measured_points_keep_the_infeasible_ones_for_the_picture():
    assert numbers(measured_points(POINTS, "t0")) == [0, 1, 2, 3, 4]


def test_a_target_that_was_not_searched_is_refused():
    with pytest.raises(InputError, match="did you mean 't0'"):
        front(POINTS, "t00")


def test_an_empty_history_has_an_empty_front():
    assert front((), "t0") == ()
    assert joint_front(()) == ()


def test_the_joint_front_never_averages_targets():
    # 0 is best on t0, 1 on t1, 2 is between on both; an average would drop one of them. 3 is beaten by 2 on both.
    pair = (
        candidate(0, (10, 1.0, 0.0), (90, 1.0, 0.0)),
        candidate(1, (90, 1.0, 0.0), (10, 1.0, 0.0)),
        candidate(2, (50, 1.0, 0.0), (50, 1.0, 0.0)),
        candidate(3, (60, 1.0, 0.0), (60, 1.0, 0.0)),
        candidate(4, (1, 1.0, 0.0), (1, 1.0, 0.0, "too slow")),
    )
    assert [c.number for c in joint_front(pair)] == [0, 1, 2]


def test_pick_minimizes_within_the_limits():
    assert pick(POINTS, "t0", Constraints(max_drop_points=1)).candidate.number == 1
    assert pick(POINTS, "t0", Constraints(max_drop_points=5)).candidate.number == 3
    assert pick(POINTS, "t0", Constraints(max_drop_points=5, max_latency_ms=1), "size").candidate.number == 1


def test_of_equal_figures_pick_takes_the_smaller_drop():
    assert pick(POINTS, "t0", Constraints(), "latency").candidate.number == 0


def test_a_pick_that_nothing_meets_names_the_nearest_points():
    with pytest.raises(InfeasibleError, match=r"size 2.5e-05 MB exceeds the limit of 2e-05 MB"):
        pick(POINTS, "t0", Constraints(max_size_bytes=20))


def test_a_pick_from_an_empty_front_says_so():
    with pytest.raises(InfeasibleError, match="front is empty"):
        pick(POINTS[4:], "t0", Constraints())


def test_an_unknown_figure_is_refused_not_taken_as_zero():
    with pytest.raises(InputError, match="energy_mj is unknown on target 't0'"):
        pick(POINTS, "t0", Constraints(), "energy")
    with pytest.raises(InfeasibleError, match="energy_mj is unknown"):
        pick(POINTS, "t0", Constraints(max_energy_mj=1.0))
    with pytest.raises(InputError, match="unknown figure to minimize"):
        pick(POINTS, "t0", Constraints(), "sise")
