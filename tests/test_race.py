"""Searches that stop hopeless candidates early: the same front for less, never a stopped candidate on it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import Raced, problem, target, workload

from haq.accuracy import Interval, Measurement
from haq.candidate import Candidate, TargetResult
from haq.constraints import Constraints
from haq.engine.loop import run_search
from haq.engine.problem import SearchOptions
from haq.engine.race import Bar, Rivals, bars_of
from haq.front import front, joint_front
from haq.history import summarize
from haq.precision import Assignment
from haq.rundir import HISTORY_FILE, read_run
from haq.space import Rule

FAST = SearchOptions(trials=25, storage="none")
SIX = ("a", "b", "c", "d", "e", "f")


def search(tmp_path, asked, options=FAST, name="run"):
    return read_run(run_search(asked, options, tmp_path / name))


def untimed(path):
    lines = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def results(run):
    return [r for c in run.history.candidates for r in c.results]


def bar(asked, priced, earlier):
    rivals = Rivals(asked)
    for candidate in earlier:
        rivals.add(candidate)
    return rivals.bar(priced)


def losses(run, name="plain"):
    return sorted(p.losses for p in front(run.history.candidates, name))


@pytest.mark.parametrize("limits", [Constraints(), Constraints(max_drop_points=1.0)])
def test_a_whole_space_has_the_front_that_it_has_without_racing_for_less_than_half(tmp_path, limits):
    net = workload()
    arguments = {"targets": (target(net, limits),), "rules": (Rule("*", (4, 8, 16)),)}
    raced = search(tmp_path, problem(net, measure=Raced(), **arguments), replace(FAST, trials=1000), "raced")
    full = search(
        tmp_path, replace(problem(net, measure=Raced(), **arguments), race=None), replace(FAST, trials=1000), "full"
    )
    assert len(raced.history.candidates) == len(full.history.candidates) == 81
    assert losses(raced) == losses(full)
    summary = summarize(raced.history)
    assert summary.stopped_early > 20
    assert summary.mean_share < 0.5
    assert (summarize(full.history).stopped_early, summarize(full.history).mean_share) == (0, 1.0)
    assert summary.sample_forwards < 0.6 * summarize(full.history).sample_forwards


def test_front_members_are_measured_in_full_and_stopped_ones_are_neither_on_a_front_nor_validated(tmp_path):
    net = workload(SIX)
    targets = (target(net), target(net, Constraints(max_drop_points=1), name="other", no_int4=("a", "b")))
    run = search(tmp_path, problem(net, targets, Raced()), replace(FAST, trials=60))
    stopped = {r.executed.signature for r in results(run) if r.measurement and r.measurement.is_partial}
    assert stopped
    for name in run.targets:
        members = {p.result.executed.signature for p in front(run.history.candidates, name)}
        assert members
        assert all(p.result.measurement.samples == 400 for p in front(run.history.candidates, name))
        assert members <= set(run.history.validations) | {run.history.baseline.signature}
    assert not stopped & set(run.history.validations)
    for r in results(run):
        if r.measurement is not None and r.measurement.is_partial:
            assert not r.is_feasible
            assert r.measurement.of_samples == 400
            assert r.measurement.drop_interval.low - 1e-9 <= r.measurement.drop_points


def test_a_stopped_candidate_says_after_how_much_and_why(tmp_path):
    net = workload()
    run = search(tmp_path, problem(net, (target(net, Constraints(max_drop_points=1)),), Raced()))
    uniform4 = run.history.candidates[3].on("plain")
    # It loses 2.5 points, the 10 smallest margins of 400; nothing is smaller, so only the limit can stop it.
    samples = uniform4.measurement.samples
    assert samples < 400
    low = uniform4.measurement.drop_interval.low
    assert 1 < low <= 2.5
    why = f"stopped after {samples} of 400 samples: the drop is at least {low:.3g} points (95 %)"
    assert uniform4.violations == (f"{why}, more than the limit of 1",)
    sentences = [v for r in results(run) for v in r.violations]
    assert any("beaten by candidate" in sentence for sentence in sentences)


def test_the_lesson_of_a_stopped_candidate_is_its_estimate(tmp_path):
    from haq.engine.loop import request
    from haq.engine.problem import baseline_costs
    from haq.engine.session import Session
    from haq.rundir import open_run

    net = workload()
    asked = problem(net, (target(net, Constraints(max_drop_points=1)),), Raced())
    run = search(tmp_path, asked)
    with open_run(run.path, request(asked, FAST)) as opened:
        lessons = Session(asked, FAST, opened, baseline_costs(asked), ()).lessons["plain"]
    seen = set()
    for candidate, lesson in zip(run.history.candidates, lessons, strict=True):
        found = candidate.on("plain")
        if found.measurement.is_partial:
            over_limit = "limit" in found.violations[0]
            seen.add(over_limit)
            assert lesson.values[2] == found.measurement.drop_points
            assert lesson.constraints["max_drop_points"] == pytest.approx(found.measurement.drop_points - 1)
            assert not over_limit or lesson.constraints["max_drop_points"] > 0
    assert seen == {True, False}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_raced_run_that_is_interrupted_and_resumed_has_the_history_of_an_unbroken_one(tmp_path, sampler):
    net = workload(SIX)
    targets = (target(net), target(net, Constraints(max_drop_points=1), name="other", no_int4=("a", "b")))
    options = replace(FAST, trials=50, sampler=sampler)
    for stop in (3, 20, 30):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, problem(net, targets, Raced(stop_after=stop)), options, "broken")
    search(tmp_path, problem(net, targets, Raced()), options, "broken")
    search(tmp_path, problem(net, targets, Raced()), options, "whole")
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")
    assert summarize(read_run(tmp_path / "whole").history).stopped_early > 5


def test_what_one_target_stopped_is_measured_again_where_another_could_use_it(tmp_path):
    """`picky` allows no drop of 0.5 points, `plain` any: the stop on the one must not hide a point from the other."""
    net = workload(SIX)
    targets = (target(net, Constraints(max_drop_points=0.5), name="picky", no_int4=("a",)), target(net, name="plain"))
    run = search(tmp_path, problem(net, targets, Raced()), replace(FAST, trials=80))
    last = {r.executed.signature: r.measurement for r in results(run) if r.measurement is not None}
    once = [s for s in last if len({r.measurement.samples for r in results(run) if r.executed.signature == s}) > 1]
    assert once  # stopped for one target, measured further for the other
    # A stopped candidate is ruled out on every target that executes it and has no other objection to it.
    for number, candidate in enumerate(run.history.candidates):
        for r in candidate.results:
            if r.measurement is not None and r.measurement.is_partial:
                asked = targets[[t.name for t in targets].index(r.target)]
                limit = bar(asked, replace(r, violations=()), run.history.candidates[:number])
                assert limit is not None
                assert limit.rules_out(r.measurement.drop_interval.low)
    forwards = sum(n for _, n in {(r.executed.signature, r.measurement.samples) for r in results(run) if r.measurement})
    assert summarize(run.history).sample_forwards >= forwards


def test_the_joint_front_holds_only_candidates_measured_in_full(tmp_path):
    net = workload(SIX)
    targets = (target(net), target(net, name="other", no_int4=("a", "b")))
    run = search(tmp_path, problem(net, targets, Raced()), replace(FAST, trials=60))
    joint = joint_front(run.history.candidates)
    assert joint
    assert all(r.measurement.samples == 400 for c in joint for r in c.results)


ONE = Assignment.uniform(("a",), 8)


def candidate(number, size, latency, drop, *, of_samples=None, violations=()):
    measured = Measurement("search", 100, 0.9, drop, drop_interval=Interval(drop, drop), of_samples=of_samples)
    costs = {"size_bytes": size, "latency_ms": latency}
    return Candidate(number, "x", ONE, (TargetResult("plain", ONE, (), costs, measured, violations),))


def bar_for(size, latency, earlier, limit=None):
    asked = target(workload(), Constraints(max_drop_points=limit))
    costs = {"size_bytes": size, "latency_ms": latency}
    return bar(asked, TargetResult("plain", ONE, (), costs), earlier)


def test_the_bar_is_the_lowest_of_the_limit_and_of_what_beats_the_costs():
    assert bar_for(10, 10, ()) is None
    assert bar_for(10, 10, (), limit=2) == Bar(2)
    smaller, larger = candidate(0, 9, 10, 1.5), candidate(1, 11, 1, 0.0)
    assert bar_for(10, 10, (smaller, larger), limit=2) == Bar(1.5, 0, is_met_by_equal=False)
    assert bar_for(10, 10, (smaller,), limit=1) == Bar(1)
    alike = candidate(2, 10, 10, 1.5)
    assert bar_for(10, 10, (alike,)) == Bar(1.5, 2)
    assert bar_for(10, 10, (alike, smaller)) == Bar(1.5, 0, is_met_by_equal=False)


def test_of_equal_bars_the_earliest_is_named_and_the_limit_before_all():
    many = [candidate(i, 100 - i, 5, 2.0 + (i % 7 == 0)) for i in range(80)]  # sizes 100 to 21, candidate 0 drops 3
    assert bar_for(100, 5, many) == Bar(2.0, 1, is_met_by_equal=False)
    assert bar_for(21, 5, many) == Bar(2.0, 79)
    assert bar_for(21, 5, many, limit=2) == Bar(2)
    assert bar_for(100, 5, many, limit=2) == Bar(2.0, 1, is_met_by_equal=False)
    assert bar_for(20, 5, many) is None


def test_stopped_and_infeasible_candidates_set_no_bar():
    assert bar_for(10, 10, (candidate(0, 1, 1, 0.0, of_samples=400),)) is None
    assert bar_for(10, 10, (candidate(0, 1, 1, 0.0, violations=("too large",)),)) is None


def test_an_equal_drop_is_of_use_only_where_costs_are_equal_too():
    assert not Bar(1.0).rules_out(1.0)
    assert Bar(1.0).rules_out(1.01)
    assert Bar(1.0, 3, is_met_by_equal=False).rules_out(1.0 - 1e-12)
    assert not Bar(1.0, 3, is_met_by_equal=False).rules_out(0.9)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_what_a_bar_rules_out_is_never_on_the_front(triples):
    """Brute force: a candidate whose drop its bar rules out is beaten by an earlier one, and only then."""
    everything = [candidate(i, *triple) for i, triple in enumerate(triples)]
    *earlier, last = everything
    found = bar_for(*triples[-1][:2], earlier)
    on_front = any(p.candidate is last for p in front(everything, "plain"))
    beaten = any(all(a <= b for a, b in zip(t, triples[-1], strict=True)) and t != triples[-1] for t in triples[:-1])
    ruled_out = found is not None and found.rules_out(triples[-1][2])
    assert ruled_out == beaten
    assert not (ruled_out and on_front)


def test_a_signature_that_several_targets_share_is_watched_only_where_every_one_has_a_bar():
    targets = (target(workload(), Constraints(max_drop_points=1)), target(workload(), name="other"))
    costs = {"size_bytes": 1.0, "latency_ms": 1.0}
    rivals = [Rivals(t) for t in targets]
    priced = [TargetResult(t.name, ONE, (), costs) for t in targets]
    scores = np.ones(400)
    assert bars_of(rivals, priced).watch(ONE.signature, scores, "maximize") is None
    over_size = [priced[0], replace(priced[1], violations=("size",))]
    assert bars_of(rivals, over_size).watch(ONE.signature, scores, "maximize") is not None
    assert bars_of(rivals, over_size).watch(ONE.signature, 0.9, "maximize") is None
