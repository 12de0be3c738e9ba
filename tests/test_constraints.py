"""Limits and verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.constraints import Constraints, relaxed

FIGURES = {"size_bytes": 12.5e6, "latency_ms": 2.0, "drop_points": 0.4, "activation_peak_bytes": 1e6}


def test_a_candidate_within_every_limit_is_feasible():
    assert Constraints(max_size_bytes=12.5e6, max_drop_points=0.4).judge(FIGURES).is_feasible


def test_every_violated_limit_is_named_with_both_numbers():
    verdict = Constraints(max_size_bytes=10e6, max_latency_ms=1.5, max_drop_points=1).judge(FIGURES)
    assert [str(v) for v in verdict.violations] == [
        "latency 2 ms exceeds the limit of 1.5 ms",
        "size 12.5 MB exceeds the limit of 10 MB",
    ]
    assert [v.excess for v in verdict.violations] == [0.5, 2.5e6]


def test_a_cheap_verdict_does_not_ask_for_accuracy():
    limits = Constraints(max_drop_points=1)
    assert limits.judge({}, cheap=True).is_feasible
    assert not limits.judge({}).is_feasible


def test_an_unknown_figure_is_not_taken_as_zero():
    verdict = Constraints(max_energy_mj=5).judge(FIGURES)
    assert verdict.unknown == ("energy_mj",)
    assert not verdict.is_feasible


def test_no_limits_judge_nothing():
    assert Constraints().set_limits() == {}
    assert Constraints().judge({}).is_feasible


@pytest.mark.parametrize(
    ("limit", "least", "expected"),
    [
        ("max_size_bytes", 12_500_001, "--max-size-mb to 12.5001"),  # rounded up, never down
        ("max_size_bytes", 850, "--max-size-mb to 0.00085"),
        ("max_memory_bytes", 4_000_000, "--max-memory-mb to 4"),
        ("max_latency_ms", 3.21, "--max-latency-ms to 3.21"),
        ("max_latency_ms", 1.23456789, "--max-latency-ms to 1.23457"),
        ("max_latency_rise_ms", -1.23456789, "--max-latency-rise-ms to -1.23456"),
        ("max_energy_mj", 5e-7, "--max-energy-mj to 5e-07"),
    ],
)
def test_a_relaxed_limit_is_the_option_and_its_least_value(limit, least, expected):
    assert relaxed(limit, least) == expected
    assert relaxed(limit, least, "mobile") == expected.replace(" to ", " to mobile=")


@given(st.integers(1, 10**12))
def test_a_relaxed_size_is_never_below_what_is_needed(size_bytes):
    megabytes = float(relaxed("max_size_bytes", size_bytes).split()[-1])
    assert size_bytes <= megabytes * 1e6 <= size_bytes * (1 + 2e-5)
