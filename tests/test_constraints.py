"""Limits and verdicts."""

from haq.constraints import Constraints

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
