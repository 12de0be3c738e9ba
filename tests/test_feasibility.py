"""Limits that can and cannot be met: sizes are weights times bits, latency is 1 ms plus 1 us per byte."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import residual
from search_fakes import Accuracy, problem, target, workload

from haq.constraints import Constraints
from haq.engine.feasibility import descend, drawn_points, kept_shares, reachable_levels
from haq.engine.problem import Problem, baseline_costs, price
from haq.engine.seeds import seeds
from haq.engine.targets import profile_target
from haq.errors import InfeasibleError, InputError
from haq.hardware.profile import load_profile
from haq.space import Rule, build_space


def check(limits, *, no_int4=(), **space_arguments):
    net = workload()
    asked = problem(net, (target(net, limits, no_int4=no_int4),), **space_arguments)
    starts = tuple(seed.levels for seed in seeds(net, asked.space))
    return asked, reachable_levels(asked, baseline_costs(asked), starts)


def test_limits_that_a_seed_meets_need_nothing_more():
    assert check(Constraints(max_size_bytes=500))[1] == {}


def test_a_limit_on_the_drop_alone_is_not_judged_before_it_is_measured():
    assert check(Constraints(max_drop_points=0))[1] == {}


def test_the_smallest_size_is_exact_and_the_pin_that_blocks_more_is_named():
    with pytest.raises(InfeasibleError) as error:
        check(Constraints(max_size_bytes=800), pins={"d": 16})
    # 600 other weights at 4 bits are 300 bytes, d's 400 at 16 bits are 800; 4 bits there would save 600.
    assert "smallest reachable size is 0.0011 MB" in str(error.value)
    assert "d is limited to 16 bits (4 would save 0.0006 MB)" in str(error.value)


def test_a_fallback_of_the_target_is_named_with_its_reason():
    with pytest.raises(InfeasibleError, match=r"on 2 layers int4/int8 runs as int8/int8 \(no int4 kernel\)") as error:
        check(Constraints(max_size_bytes=600), no_int4=("c", "d"))
    assert "is 0.00085 MB" in str(error.value)  # (100 + 200) / 2 + 300 + 400


def test_latency_is_honestly_the_smallest_found():
    with pytest.raises(InfeasibleError, match=r"latency limit 1.4 ms: smallest found latency is 1.5 ms"):
        check(Constraints(max_latency_ms=1.4))


def test_a_rise_over_the_baseline_may_have_to_be_negative_to_fail():
    assert check(Constraints(max_latency_rise_ms=0.0))[1] == {}
    net = workload()
    limited = target(net, Constraints(max_latency_rise_ms=0.0))
    # Whatever is not FP32 in layer a takes 5.5 ms instead of 1 ms, and the rules forbid FP32.
    costs = lambda executed: {"size_bytes": 1.0, "latency_ms": 1.0 if "32" in str(executed["a"]) else 5.5}  # noqa: E731
    asked = problem(net, (replace(limited, costs=costs),), rules=(Rule("*", (4, 8)),))
    starts = tuple(seed.levels for seed in seeds(net, asked.space))
    with pytest.raises(InfeasibleError, match=r"smallest found latency rise is 4.5 ms.*a is limited to 4/8 bits"):
        reachable_levels(asked, baseline_costs(asked), starts)


def test_limits_that_exclude_each_other_are_told_apart_from_impossible_ones():
    net = workload()
    both = target(net, Constraints(max_size_bytes=600, max_latency_ms=2.0))
    slow_when_small = replace(both, costs=lambda e: {**both.costs(e), "latency_ms": 2000 / both.costs(e)["size_bytes"]})
    asked = problem(net, (slow_when_small,))
    with pytest.raises(InfeasibleError, match="no assignment was found that meets all of them at once"):
        reachable_levels(asked, baseline_costs(asked), tuple(s.levels for s in seeds(net, asked.space)))


def test_a_limit_on_a_figure_that_is_unknown_is_refused():
    with pytest.raises(InputError, match="energy_mj is unknown on this target"):
        check(Constraints(max_energy_mj=1.0))


def test_levels_that_no_seed_has_are_found_and_handed_to_the_search():
    net = workload()
    asked = problem(net, (target(net, Constraints(max_size_bytes=700)),))
    found = reachable_levels(asked, baseline_costs(asked), (asked.space.uniform(32),))["plain"]
    executed, _ = asked.targets[0].legalize(asked.space.assignment(found))
    assert asked.targets[0].costs(executed)["size_bytes"] <= 700


def test_the_smallest_latency_found_is_never_above_a_seeds():
    # Every change between neighbours costs 1 ms, so a single group cannot leave a uniform width alone.
    net = workload()
    limited = target(net, Constraints(max_latency_ms=0.5, max_size_bytes=100))

    def costs(executed):
        bits = [executed.precision(name).weight.bits for name in executed]
        switches = sum(a != b for a, b in itertools.pairwise(bits))
        return {**limited.costs(executed), "latency_ms": (1.0 if bits[0] == 8 else 2.0) + switches}

    asked = problem(net, (replace(limited, costs=costs),))
    starts = tuple(seed.levels for seed in seeds(net, asked.space))
    with pytest.raises(InfeasibleError, match=r"smallest found latency is 1 ms;"):
        reachable_levels(asked, baseline_costs(asked), starts)


@pytest.mark.parametrize("name", ["a100", "mobile", "tpu-v4", "reference"])
@pytest.mark.parametrize(
    "limits",
    [
        Constraints(max_latency_ms=1e-6, max_size_bytes=1),
        Constraints(max_latency_rise_ms=-1e3, max_memory_bytes=1),
        Constraints(max_size_bytes=39_000, max_drop_points=1),
    ],
)
def test_a_table_and_one_price_at_a_time_lead_to_the_same_end(name, limits):
    net = residual()
    fast = replace(profile_target(net, load_profile(name), limits), terms=None)
    space = build_space(net, pins={"b": 16})
    ends = []
    for limited in (fast, replace(fast, population=None)):
        asked = Problem(net, space, (limited,), Accuracy())
        try:
            ends.append(reachable_levels(asked, baseline_costs(asked), (space.uniform(32),)))
        except InfeasibleError as error:
            ends.append(str(error))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("limits", [Constraints(max_size_bytes=80_000), Constraints(max_latency_rise_ms=-1e-4)])
def test_the_share_of_a_small_space_that_keeps_the_limits_is_counted(limits):
    net = residual()
    limited = profile_target(net, load_profile("reference"), limits)
    free = replace(profile_target(net, load_profile("a100")), name="free")
    asked = Problem(net, build_space(net), (limited, free, replace(limited, name="slow", population=None)), Accuracy())
    base = baseline_costs(asked)
    points = drawn_points(asked.space, 0)
    assert sorted(map(tuple, points.tolist())) == list(itertools.product(range(4), repeat=3))
    priced = [price(limited, asked.space.assignment(levels), base["reference"]) for levels in points.tolist()]
    kept = sum(result.is_feasible for result in priced)
    assert 0 < kept < 64
    assert kept_shares(asked, base, points) == {"reference": kept / 64}


def test_a_large_space_is_drawn_from_with_a_seed():
    space = build_space(workload(tuple(f"l{i}" for i in range(20))), (Rule("l3", (8, 16)), Rule("l4", (8,))))
    points = drawn_points(space, 3)
    assert points.shape == (1000, 20)
    assert (points == drawn_points(space, 3)).all()
    assert not (points == drawn_points(space, 4)).all()
    assert [sorted(set(column)) for column in points.T[2:5].tolist()] == [[0, 1, 2, 3], [0, 1], [0]]


def on_profile(name, limits, *, others=(), **space_arguments):
    """The residual network on a shipped profile, and the figures of every assignment there."""
    net = residual()
    space = build_space(net, **space_arguments)
    limited = profile_target(net, load_profile(name), limits)
    also = tuple(profile_target(net, load_profile(other)) for other in others)
    asked = Problem(net, space, (limited, *also), Accuracy())
    points = list(itertools.product(*(range(len(group.bits)) for group in space.groups)))
    executed = (limited.legalize(space.assignment(point))[0] for point in points)
    return asked, [limited.costs(choice) for choice in executed]


def refusal(asked):
    with pytest.raises(InfeasibleError) as error:
        reachable_levels(asked, baseline_costs(asked), (asked.space.uniform(32),))
    return str(error.value)


@pytest.mark.parametrize("name", ["a100", "mobile", "tpu-v4", "reference"])
def test_on_a_profile_the_smallest_of_every_figure_is_that_of_all_assignments(name):
    limits = Constraints(max_latency_ms=1e-6, max_size_bytes=1, max_memory_bytes=1)
    asked, costs = on_profile(name, limits, pins={"b": 16})
    message = refusal(asked)
    assert f"smallest reachable latency is {min(c['latency_ms'] for c in costs):.6g} ms" in message
    assert f"smallest reachable size is {min(c['size_bytes'] for c in costs) * 1e-6:.6g} MB" in message
    assert f"activations is {min(c['activation_peak_bytes'] for c in costs) * 1e-6:.6g} MB" in message
    assert "b is limited to 16 bits" in message


def test_a_limit_that_cannot_be_met_is_to_be_relaxed_to_what_can():
    asked, costs = on_profile("reference", Constraints(max_size_bytes=100))
    smallest = min(c["size_bytes"] for c in costs)
    assert refusal(asked).endswith(f"; relax --max-size-mb to {smallest * 1e-6:.6g}")


@pytest.mark.parametrize("name", ["a100", "mobile", "reference"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_exactly_what_no_assignment_meets_is_refused_and_every_way_out_leads_out_narrowly(name, data):
    figures = {
        "max_latency_ms": "latency_ms",
        "max_size_bytes": "size_bytes",
        "max_memory_bytes": "activation_peak_bytes",
    }
    pins = data.draw(st.sampled_from(({}, {"a": 8}, {"c": 32})))
    _, costs = on_profile(name, Constraints(), pins=pins)
    chosen = data.draw(st.lists(st.sampled_from(sorted(figures)), min_size=1, max_size=3, unique=True))
    limits = {limit: data.draw(st.sampled_from([c[figures[limit]] for c in costs])) for limit in chosen}
    asked, _ = on_profile(name, Constraints(**limits), pins=pins)

    def can_be_met(bounds):
        return any(all(c[figures[limit]] <= bound for limit, bound in bounds.items()) for c in costs)

    if can_be_met(limits):
        found = reachable_levels(asked, baseline_costs(asked), (asked.space.uniform(32),))
        point = found.get(name, asked.space.uniform(32))
        executed = asked.targets[0].legalize(asked.space.assignment(point))[0]
        assert asked.targets[0].constraints.judge(asked.targets[0].costs(executed), cheap=True).is_feasible
        return
    message = refusal(asked)
    assert ("no assignment meets all of them at once" in message) == (len(limits) > 1)
    for way in message.split("; relax ")[1].split(", or "):
        named = dict(option.split(" to ") for option in way.split(" and "))
        raised, narrower = dict(limits), dict(limits)
        for option, value in named.items():
            limit = option.removeprefix("--").replace("-", "_").replace("_mb", "_bytes")
            raised[limit] = float(value) * (1e6 if option.endswith("-mb") else 1)
            narrower[limit] = raised[limit] * (1 - 1e-5)
            assert raised[limit] > limits[limit]
        assert can_be_met(raised)
        assert len(named) > 1 or not can_be_met(narrower)


def test_limits_that_exclude_each_other_name_the_way_out_of_each():
    asked, costs = on_profile("a100", Constraints(max_size_bytes=40_100, max_latency_ms=0.06))
    # Only int4 weights of the linear layer are that small, and its fp16 arithmetic is slower than int8 everywhere.
    latency = min(c["latency_ms"] for c in costs if c["size_bytes"] <= 40_100)
    size = min(c["size_bytes"] for c in costs if c["latency_ms"] <= 0.06)
    assert (round(latency, 7), size) == (0.0617793, 40_351)
    message = refusal(asked)
    assert "smallest reachable latency is 0.0590895 ms" in message
    assert message.endswith(
        "; no assignment meets all of them at once; relax --max-latency-ms to 0.0617793, or --max-size-mb to 0.040351"
    )


def test_a_way_out_names_the_target_where_there_are_several():
    asked, costs = on_profile("reference", Constraints(max_size_bytes=1), others=("tpu-v4",))
    smallest = min(c["size_bytes"] for c in costs)
    assert refusal(asked).endswith(f"relax --max-size-mb to reference={smallest * 1e-6:.6g}")


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=4), min_size=4, max_size=4), st.integers(0, 255))
def test_descent_is_exact_where_groups_add_up(table, start):
    space = build_space(workload())
    loss = lambda levels: float(sum(row[level] for row, level in zip(table, levels, strict=True)))  # noqa: E731
    best = min(loss(levels) for levels in itertools.product(range(4), repeat=4))
    begin = tuple((start // 4**i) % 4 for i in range(4))
    found = descend(space, begin, lambda points: np.array([loss(levels) for levels in points.tolist()]))
    assert loss(found) == best


@settings(max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=18, max_size=18), st.integers(0, 17))
def test_descent_goes_group_by_group_whatever_the_loss(values, start):
    allowed = ((4, 8), (8, 16, 32), (4, 8, 16))
    space = build_space(workload(("a", "b", "c")), tuple(map(Rule, "abc", allowed)))
    table = np.array(values, dtype=float).reshape(2, 3, 3)
    begin = tuple(map(int, np.unravel_index(start, table.shape)))
    levels, improved = begin, True
    while improved and table[levels] > 0:
        improved = False
        for group, bits in enumerate(allowed):
            for level in range(len(bits)):
                trial = (*levels[:group], level, *levels[group + 1 :])
                if table[trial] < table[levels]:
                    levels, improved = trial, True
    assert descend(space, begin, lambda points: table[tuple(points.T)]) == levels
