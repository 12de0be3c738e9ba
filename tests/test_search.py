"""The search loop on a network whose size, latency and accuracy are arithmetic."""

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import Accuracy, SampleScores, problem, target, workload

from haq.constraints import Constraints
from haq.engine.events import BaselineMeasured, CandidateDone, Finished, Notice, Started, Validated
from haq.engine.loop import run_search
from haq.engine.problem import SearchOptions, effective_size
from haq.engine.samplers import SAMPLERS
from haq.errors import InfeasibleError, InputError
from haq.front import front
from haq.history import summarize
from haq.pareto import hypervolume, non_dominated
from haq.precision import BIT_WIDTHS
from haq.rundir import HISTORY_FILE, read_run
from haq.space import Rule, build_space

FAST = SearchOptions(trials=25, storage="none")
SIX = ("a", "b", "c", "d", "e", "f")


def search(tmp_path, asked, options=FAST, name="run", progress=lambda event: None):
    return read_run(run_search(asked, options, tmp_path / name, progress))


def untimed(path):
    """The history's lines without what differs between two equal runs."""
    lines = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def test_it_measures_as_many_different_candidates_as_asked(tmp_path):
    measure = Accuracy()
    run = search(tmp_path, problem(workload(SIX), measure=measure))
    on_search = [signature for signature, split in measure.calls if split == "search"]
    assert len(on_search) == len(set(on_search)) == 1 + 25  # FP32 and the trials
    assert len({c.requested for c in run.history.candidates}) == len(run.history.candidates)


def test_the_history_starts_with_fp32_and_the_uniform_seeds(tmp_path):
    run = search(tmp_path, problem())
    assert run.history.baseline.measurements["search"].accuracy == 0.9
    assert run.history.baseline.costs["plain"]["size_bytes"] == 4 * (100 + 200 + 300 + 400)
    assert [c.origin for c in run.history.candidates[:4]] == [f"seed:uniform{b}" for b in (32, 16, 8, 4)]


def test_drop_is_against_fp32_in_points(tmp_path):
    run = search(tmp_path, problem())
    uniform4 = run.history.candidates[3].on("plain").measurement
    # Every layer loses 4 x (1 + i) points, i = 0..3, over 4^2 layers squared: 4 x 10 / 16 = 2.5.
    assert uniform4.drop_points == pytest.approx(2.5)


def test_the_whole_of_a_small_space_is_searched_once_and_its_front_is_the_true_one(tmp_path):
    asked = problem(rules=(Rule("*", (4, 8, 16)),))
    events = []
    run = search(tmp_path, asked, replace(FAST, trials=1000), progress=events.append)
    assert events[-1].reason == "space exhausted"
    assert len(run.history.candidates) == asked.space.size == 81
    losses = np.array([p.losses for p in front(run.history.candidates, "plain")])
    every = [
        (*asked.targets[0].costs(e).values(), 100 * (0.9 - Accuracy()(e, "search")))
        for levels in np.ndindex(3, 3, 3, 3)
        for e in [asked.targets[0].legalize(asked.space.assignment(levels))[0]]
    ]
    best = np.array(every)[non_dominated(every)]
    assert np.sort(losses, axis=0) == pytest.approx(np.sort(best, axis=0))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_the_same_seed_gives_the_same_history(tmp_path, sampler):
    options = replace(FAST, trials=45, sampler=sampler)
    for name in ("one", "two"):
        search(tmp_path, problem(workload(SIX)), options, name)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "two")


def test_another_seed_gives_another_history(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        search(tmp_path, problem(workload(SIX)), replace(FAST, trials=40, seed=seed), name)
    assert untimed(tmp_path / "one") != untimed(tmp_path / "two")


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_run_that_is_interrupted_and_resumed_has_the_history_of_an_unbroken_one(tmp_path, sampler):
    net = workload(SIX)
    targets = (target(net), target(net, name="other", no_int4=("a", "b")))
    options = replace(FAST, trials=70, sampler=sampler)
    for stop in (3, 30, 75):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, problem(net, targets, Accuracy(stop_after=stop)), options, "broken")
    search(tmp_path, problem(net, targets), options, "broken")
    search(tmp_path, problem(net, targets), options, "whole")
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")


def test_gp_is_resumed_like_any_other_sampler(tmp_path):
    options = replace(FAST, trials=10, sampler="gp")
    net = workload(("a", "b", "c"))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, problem(net, measure=Accuracy(stop_after=11)), options, "broken")
    search(tmp_path, problem(net), options, "broken")
    search(tmp_path, problem(net), options, "whole")
    assert {c.origin for c in read_run(tmp_path / "whole").history.candidates} >= {"gp", "seed:uniform8"}
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")


def test_ctrl_c_keeps_finished_candidates_and_writes_the_front_so_far(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, problem(measure=Accuracy(stop_after=8)))
    run = read_run(tmp_path / "run")
    assert len(run.history.candidates) == 1 + 6  # two measurements of FP32, which also serves uniform 32, and six more
    assert len((run.path / "front.csv").read_text().splitlines()) == 1 + len(front(run.history.candidates, "plain"))


def test_a_half_written_last_line_is_dropped_and_measured_again(tmp_path):
    run = search(tmp_path, problem(), replace(FAST, trials=6))
    whole = untimed(run.path)
    history = run.path / HISTORY_FILE
    cut = [line for line in history.read_text().splitlines() if '"kind":"candidate"' in line][:4]
    first = history.read_text().splitlines()[0]
    history.write_text("\n".join([first, *cut])[:-30])
    search(tmp_path, problem(), replace(FAST, trials=6))
    assert untimed(run.path) == whole


def test_a_finished_run_can_be_asked_for_more_trials(tmp_path):
    search(tmp_path, problem(workload(SIX)), replace(FAST, trials=8))
    run = search(tmp_path, problem(workload(SIX)), replace(FAST, trials=20))
    unbroken = search(tmp_path, problem(workload(SIX)), replace(FAST, trials=20), "whole")
    assert run.history.candidates == unbroken.history.candidates
    assert run.info["search"]["trials"] == 20


def test_another_search_in_the_same_directory_is_refused_with_the_key_and_both_values(tmp_path):
    search(tmp_path, problem(), replace(FAST, trials=3))
    with pytest.raises(InputError, match=r"search.seed is 0 there; got 7"):
        search(tmp_path, problem(), replace(FAST, trials=3, seed=7))
    with pytest.raises(InputError, match=r"provenance.weights_hash is 'w0' there; got 'w1'"):
        search(tmp_path, replace(problem(), provenance={"model": "chain", "weights_hash": "w1", "data_hash": "d0"}))


def test_targets_share_a_measurement_only_where_they_execute_the_same(tmp_path):
    net = workload()
    measure = Accuracy()
    targets = (target(net), target(net, name="other", no_int4=("d",)))
    run = search(tmp_path, problem(net, targets, measure), replace(FAST, trials=30))
    on_search = [signature for signature, split in measure.calls if split == "search"]
    executed = {r.executed.signature for c in run.history.candidates for r in c.results}
    assert sorted(on_search) == sorted(executed | {run.history.baseline.signature})
    uniform4 = run.history.candidates[3]
    assert uniform4.on("plain").measurement != uniform4.on("other").measurement
    assert [f.layer for f in uniform4.on("other").fallbacks] == ["d"]


def test_candidates_over_a_cost_limit_are_never_measured_and_never_on_the_front(tmp_path):
    net = workload()
    limits = Constraints(max_size_bytes=900)  # FP32 4000, 8 bits 1000, 4 bits 500
    measure = Accuracy()
    run = search(tmp_path, problem(net, (target(net, limits),), measure), replace(FAST, trials=20))
    results = [c.on("plain") for c in run.history.candidates]
    over = [r for r in results if r.costs["size_bytes"] > 900]
    assert len(over) > 3  # uniform 16 and 8 at least, FP32 is known
    measured = {signature for signature, split in measure.calls if split == "search"}
    assert not measured & {r.executed.signature for r in over if r.executed.signature != run.history.baseline.signature}
    assert all("exceeds the limit of 0.0009 MB" in r.violations[0] for r in over)
    assert all(p.result.costs["size_bytes"] <= 900 for p in front(run.history.candidates, "plain"))
    assert summarize(run.history).infeasible == len(over) - 1


def test_a_largest_drop_keeps_candidates_off_the_front_but_in_the_history(tmp_path):
    net = workload()
    run = search(tmp_path, problem(net, (target(net, Constraints(max_drop_points=1)),)))
    assert all(p.losses[2] <= 1 for p in front(run.history.candidates, "plain"))
    assert "drop 2.5 points exceeds the limit of 1 points" in run.history.candidates[3].on("plain").violations


def test_impossible_limits_end_before_the_first_measurement_and_before_any_file(tmp_path):
    net = workload()
    measure = Accuracy()
    with pytest.raises(InfeasibleError, match=r"smallest reachable size is 0\.0005 MB"):
        search(tmp_path, problem(net, (target(net, Constraints(max_size_bytes=499)),), measure))
    assert measure.calls == []
    assert not (tmp_path / "run").exists()


def test_non_finite_accuracy_is_refused_and_nothing_is_lost(tmp_path):
    with pytest.raises(InputError, match="not finite"):
        search(tmp_path, problem(measure=Accuracy(nan_after=7)))
    assert len(read_run(tmp_path / "run").history.candidates) == 6
    run = search(tmp_path, problem())
    assert len(run.history.candidates) == 26


def test_no_candidate_starts_after_the_timeout(tmp_path):
    events = []
    search(tmp_path, problem(), replace(FAST, timeout_s=1e-9), progress=events.append)
    assert events[-1].reason == "timeout"
    assert events[-1].summary.candidates == 0


def test_the_front_and_only_the_front_is_measured_on_the_validation_split(tmp_path):
    measure = Accuracy()
    run = search(tmp_path, problem(workload(SIX), measure=measure))
    held_out = [signature for signature, split in measure.calls if split == "validation"]
    members = {p.result.executed.signature for p in front(run.history.candidates, "plain")}
    assert sorted(held_out) == sorted(members | {run.history.baseline.signature})
    assert all(run.history.validation(signature) is not None for signature in members)


def test_a_function_with_one_data_set_is_never_asked_for_validation(tmp_path):
    measure = Accuracy()
    search(tmp_path, replace(problem(measure=measure), splits=("search",)))
    assert {split for _, split in measure.calls} == {"search"}


def test_per_sample_scores_give_intervals_and_sample_counts(tmp_path):
    run = search(tmp_path, problem(measure=SampleScores()), replace(FAST, trials=5))
    measurement = run.history.candidates[3].on("plain").measurement
    assert measurement.samples == 200
    assert measurement.drop_interval.low < measurement.drop_points < measurement.drop_interval.high
    summary = summarize(run.history)
    assert summary.sample_forwards == 200 * summary.measurements


def test_progress_counts_up_tells_the_time_left_and_the_best_point(tmp_path):
    events = []
    search(tmp_path, problem(), progress=events.append)
    assert isinstance(events[0], Started)
    assert (events[0].trials, events[0].groups, events[0].layers, events[0].space_size) == (25, 4, 4, 256)
    assert (events[0].effective_size, events[0].targets, events[0].kept) == (256, ("plain",), {})
    assert isinstance(events[1], BaselineMeasured)
    done = [e for e in events if isinstance(e, CandidateDone)]
    assert [e.done for e in done] == [0, *range(1, 26)]  # uniform 32 is FP32 and already measured
    assert all(e.left_s >= 0 for e in done)
    best = done[-1].best["plain"]
    assert best.losses[2] <= 1
    assert isinstance(events[-2], Validated)
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "trials"


def test_the_time_left_counts_signatures_per_candidate_and_the_fronts_validation(tmp_path):
    class Slow(Accuracy):
        def __call__(self, executed, split):
            time.sleep(0.01)
            return super().__call__(executed, split)

    events = []
    net = workload(SIX)
    targets = (target(net), target(net, name="other", no_int4=("a", "b")))
    search(tmp_path, problem(net, targets, Slow()), replace(FAST, trials=12), progress=events.append)
    done = [e for e in events if isinstance(e, CandidateDone)]
    validated = events[-2].total
    assert done[-1].left_s == pytest.approx(0.01 * validated, rel=0.5)
    # Between one and two measurements for each of the 12 candidates.
    assert 0.01 * 12 * 0.7 <= events[1].estimate_s <= 0.01 * 24 * 2


def test_an_unknown_sampler_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="one of gp, haq, nsga2, nsga3, qmc, random, tpe; did you mean 'qmc'"):
        search(tmp_path, problem(), replace(FAST, sampler="qmcc"))


def test_tpe_beats_random_on_sixteen_layers(tmp_path):
    """Hypervolume below (FP32 size, FP32 latency, 10 points) after 60 trials, both with the same seeds."""
    net = workload(tuple(f"l{i}" for i in range(16)))
    volumes = {}
    for sampler in ("tpe", "random"):
        run = search(tmp_path, problem(net), replace(FAST, trials=60, sampler=sampler), sampler)
        points = front(run.history.candidates, "plain")
        base = run.history.baseline.costs["plain"]
        volumes[sampler] = hypervolume([p.losses for p in points], (base["size_bytes"], base["latency_ms"], 10))
    assert volumes["tpe"] > volumes["random"]


@given(
    st.lists(st.sets(st.sampled_from(SIX[:3])), min_size=1, max_size=2),
    st.lists(st.sets(st.sampled_from(BIT_WIDTHS), min_size=1).map(tuple), min_size=3, max_size=3),
    st.booleans(),
)
def test_the_effective_size_counts_what_is_executed_differently_on_some_target(no_int4, allowed, tied):
    net = workload(SIX[:3])
    targets = tuple(target(net, name=f"t{i}", no_int4=names) for i, names in enumerate(no_int4))
    rules = tuple(map(Rule, SIX, allowed))
    asked = problem(net, targets, rules=rules, ties=((("a", "b"),) if tied else ()))
    points = itertools.product(*(range(len(group.bits)) for group in asked.space.groups))
    requests = [asked.space.assignment(point) for point in points]
    executed = {tuple(t.legalize(request)[0].signature for t in targets) for request in requests}
    assert effective_size(asked) == len(executed)


def test_the_run_keeps_the_effective_size_and_the_end_counts_replaced_repeats(tmp_path):
    net = workload()
    everywhere = target(net, no_int4=net.layer_names)
    events = []
    run = search(tmp_path, problem(net, (everywhere,)), replace(FAST, trials=1000), progress=events.append)
    assert run.info["space"]["effective_size"] == events[0].effective_size == 3**4
    assert (events[-1].reason, len(run.history.candidates)) == ("space exhausted", 3**4)
    assert 0 < events[-1].repeats < 3**4
    again = []
    search(tmp_path, problem(net, (everywhere,)), replace(FAST, trials=1000), progress=again.append)
    assert again[-1].repeats == 0


def test_ties_that_yield_to_pins_are_said(tmp_path):
    events = []
    asked = problem(pins={"a": 8}, ties=(("a", "b"), ("c", "d")))
    search(tmp_path, asked, replace(FAST, trials=2), progress=events.append)
    (text,) = (event.text for event in events if isinstance(event, Notice) and "sensitivities" not in event.text)
    assert text == "rules or pins set layers apart that devices treat alike: a, b"


def test_a_space_in_which_everything_is_pinned_has_one_candidate(tmp_path):
    net = workload()
    asked = replace(problem(net), space=build_space(net, pins={"*": 8}))
    events = []
    run = search(tmp_path, asked, progress=events.append)
    assert len(run.history.candidates) == 1
    assert events[-1].reason == "space exhausted"
