"""How calls are timed, on a clock that only the test turns."""

import pytest

from haq.errors import InputError
from haq.measure.timing import MIN_REPEATS, MOST_REPEATS, WARM_UP_S, Effort, summarize, time_all


class Clock:
    """A clock that stands still but for what calls take."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds, log=None, name=""):
        """A call that takes so long, or as long as the next of several times."""
        times = iter(seconds) if isinstance(seconds, list) else None

        def call():
            self.now += seconds if times is None else next(times)
            if log is not None:
                log.append(name)

        return call


def test_the_median_and_the_relative_interquartile_range_are_reported():
    found = summarize([[1.0, 2.0, 3.0, 4.0, 100.0]])
    assert (found.median_s, found.repeats) == (3.0, 5)
    assert found.noise == pytest.approx((4.0 - 2.0) / 3.0)


def test_the_round_that_was_disturbed_least_counts():
    found = summarize([[5.0, 5.0, 9.0], [2.0, 2.0, 2.5], [2.0, 3.0, 4.0]])
    assert (found.median_s, found.repeats) == (2.0, 3)


def test_the_error_of_a_median_falls_with_the_root_of_the_repeats():
    few, many = summarize([[1.0, 2.0, 3.0]]), summarize([[1.0, 1.5, 2.0, 2.5, 3.0] * 40])
    assert few.error_s == pytest.approx(1.2533 * 1.0 / 1.349 / 3**0.5)
    assert many.error_s < few.error_s


def test_warm_up_calls_are_not_timed():
    clock = Clock()
    slow_then_fast = clock.work([WARM_UP_S] + [0.001] * 100)
    (found,) = time_all([slow_then_fast], Effort(0.005, rounds=1), clock)
    assert found.median_s == pytest.approx(0.001)
    assert found.noise == pytest.approx(0.0, abs=1e-9)


def test_every_round_visits_every_call_so_that_a_drift_hits_all():
    clock, log = Clock(), []
    calls = [clock.work(1.0, log, name) for name in "ab"]
    time_all(calls, Effort(0.1, rounds=3), clock)
    visits = "".join(log).replace("a" * (1 + MIN_REPEATS), "A").replace("b" * (1 + MIN_REPEATS), "B")
    assert visits == "ABABAB"


def test_a_slow_call_is_repeated_a_few_times_and_a_fast_one_within_its_time():
    clock = Clock()
    slow, fast, tiny = time_all([clock.work(t) for t in (1.0, 0.001, 1e-7)], Effort(0.05, rounds=1), clock)
    assert slow.repeats == MIN_REPEATS
    assert fast.repeats == pytest.approx(50, abs=1)
    assert tiny.repeats == MOST_REPEATS


def test_a_round_beside_other_work_does_not_count():
    clock = Clock()
    disturbed = clock.work([2.0] * 4 + [1.0] * 4)
    (found,) = time_all([disturbed], Effort(0.1, rounds=2), clock)
    assert (found.median_s, found.noise) == (pytest.approx(1.0), pytest.approx(0.0))


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (-1.0, 3), (1.0, 0)])
def test_no_time_is_refused(seconds, rounds):
    with pytest.raises(InputError, match="too little to time"):
        Effort(seconds, rounds)
