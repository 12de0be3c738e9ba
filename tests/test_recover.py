"""Recovery on networks whose losses are known, against the best of all assignments."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import attention
from recovery_bench import POINTS_PER_NAT, Repair, case, chain, diagnosis

from haq.diagnose.finding import Change
from haq.diagnose.losses import Known as KnownLosses
from haq.diagnose.losses import predicted
from haq.diagnose.recover import recover
from haq.diagnose.recovery import Limits
from haq.diagnose.rungs import pricing
from haq.errors import InputError
from haq.hardware.cost import estimate
from haq.hardware.profile import load_profile
from haq.precision import Assignment, Precision


def price_of(options, levels):
    """Latency and size, each relative to now, above what they are now."""
    now, then = options.costs(options.now), options.costs(levels)
    return sum(then[name] / now[name] for name in ("latency_ms", "size_bytes")) - 2


def levels_of(options, change):
    raised = dict(change.raised)
    return tuple(
        next(k for k, rung in enumerate(rungs) if all(raised.get(n, rungs[0][n]) == p for n, p in rung.items()))
        for rungs in options.rungs
    )


def optimum(bench, options, max_drop):
    """The least price of all points that hold the drop."""
    prices = []
    for levels in itertools.product(*(range(len(rungs)) for rungs in options.rungs)):
        outcome = bench.outcome(dict(options.raised(levels)))
        if 100 * (1 - outcome.value) <= max_drop + 1e-9:
            prices.append(price_of(options, levels))
    return min(prices)


def test_rungs_climb_to_the_widest_of_the_target_and_their_prices_are_those_of_estimate():
    bench, options = case((64, 64, 256, 64), ("int8/int8",) * 3, (1, 1, 1), target="mobile")
    assert [str(rung["l0"]) for rung in options.rungs[0]] == ["int8/int8", "fp16/fp16"]  # HTP has no fp32
    profile = load_profile("mobile")
    for levels in itertools.product((0, 1), repeat=3):
        runs = Assignment.of({**bench.executed, **dict(options.raised(levels))})
        priced = estimate(bench.workload, runs, profile, batch=1)
        costs = options.costs(levels)
        assert costs["latency_ms"] == pytest.approx(priced.latency_ms, rel=1e-9)
        assert costs["size_bytes"] == priced.size_bytes
        assert costs["activation_peak_bytes"] == priced.activation_peak_bytes


def test_layers_of_one_group_climb_together_and_only_floats_means_no_new_integers():
    workload = attention()
    now = ("int4/int8", "int4/int8", "int8/int8", "int8/int8")
    runs = Assignment.of({n: Precision.parse(p) for n, p in zip(workload.layer_names, now, strict=True)})
    groups = (("embed",), ("q", "k"), ("attn/matmul_0",))
    profile = load_profile("reference")
    options = pricing(workload, runs, profile, groups=groups)
    assert [tuple(map(str, rung.values())) for rung in options.rungs[1]] == [
        ("int4/int8", "int8/int8"), ("int8/int8", "int8/int8"), ("fp16/fp16",) * 2, ("fp32/fp32",) * 2,
    ]  # fmt: skip
    floats = pricing(workload, runs, profile, groups=groups, only_floats=True)
    assert [tuple(map(str, rung.values())) for rung in floats.rungs[1]] == [
        ("int4/int8", "int8/int8"), ("fp16/fp16",) * 2, ("fp32/fp32",) * 2,
    ]  # fmt: skip


def test_what_the_target_does_not_execute_is_refused():
    workload = chain((8, 8))
    with pytest.raises(InputError, match="mobile does not execute"):
        pricing(workload, Assignment.of({"l0": Precision.parse("fp32")}), load_profile("mobile"))


def test_predicted_losses_add_up_and_fall_by_the_bits():
    _, options = case((64, 64, 64, 64), ("int8/int8",) * 3, (1, 1, 1), target="reference")
    table = predicted(options, KnownLosses(1.0, {0: 0.7}, {(0, 1): 0.5}))
    assert table[:, 0].sum() == pytest.approx(1.0)
    assert table[0].tolist()[:2] == pytest.approx([0.7, 0.35])
    assert table[1, 1] == pytest.approx(0.15 * 4.0**-5)  # fp16 rounds as 13 bits do


def check_price(bench, options, max_drop, found):
    """What holds its limit stays as it is, even where something wider were faster; all else is at the optimum."""
    if found.before.drop_points <= max_drop:
        assert found.after.change == Change()
        return
    best = optimum(bench, options, max_drop)
    assert price_of(options, levels_of(options, found.after.change)) <= best + 0.1 * abs(best) + 1e-3


SHARES = st.lists(st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.3]), min_size=5, max_size=5)
FORMATS = st.lists(st.sampled_from(["int4/int4", "int8/int8"]), min_size=5, max_size=5)


@settings(max_examples=12, deadline=None)
@given(shares=SHARES, formats=FORMATS, max_drop=st.sampled_from([0.5, 1.0, 3.0]))
@example([0.0] * 5, ["int4/int4", "int4/int4", "int4/int4", "int8/int8", "int4/int4"], 0.5)
@example([0.05, 0.1, 0.05, 0.0, 0.3], ["int4/int4", "int8/int8", "int4/int4", "int4/int4", "int4/int4"], 3.0)
def test_additive_losses_are_bought_back_at_the_exhaustive_optimum(shares, formats, max_drop):
    bench, options = case((128, 512, 64, 256, 256, 32), formats, shares, target="t4")
    found = recover(bench, diagnosis(), options, Limits(max_drop))
    assert found.met
    check_price(bench, options, max_drop, found)


@settings(max_examples=10, deadline=None)
@given(shares=SHARES, power=st.sampled_from([0.5, 2.0]), max_drop=st.sampled_from([0.5, 2.0]))
def test_losses_that_do_not_add_up_are_met_all_the_same(shares, power, max_drop):
    joint = lambda lost: float(sum(lost) ** power)  # noqa: E731
    bench, options = case((128, 512, 64, 256, 256, 32), ("int4/int4",) * 5, shares, target="t4", joint=joint)
    found = recover(bench, diagnosis(), options, Limits(max_drop))
    assert found.met
    levels = levels_of(options, found.after.change)
    assert price_of(options, levels) <= max(price_of(options, options.widest), 0.0) + 1e-9
    # Nothing that is raised can be put back: the drop would be above the limit, or nothing would be saved.
    for group, level in enumerate(levels):
        back = tuple(0 if g == group else own for g, own in enumerate(levels))
        if level and price_of(options, back) < price_of(options, levels) - 1e-12:
            assert 100 * (1 - bench.outcome(dict(options.raised(back))).value) > max_drop


@settings(max_examples=12, deadline=None)
@given(shares=st.permutations([0.0, 0.3, 0.0, 1.2, 0.6]), formats=FORMATS, max_drop=st.sampled_from([0.5, 8.0]))
@example(
    [0.0, 0.3, 1.2, 0.0, 0.6], ["int4/int4", "int8/int8", "int4/int4", "int8/int8", "int4/int4"], 8.0
)  # saves time
def test_losses_that_hide_each_other_are_bought_back_at_the_exhaustive_optimum(shares, formats, max_drop):
    """The network loses what its worst layer loses, so that raising another one alone regains nothing."""
    bench, options = case((128, 512, 64, 256, 256, 32), formats, shares, target="t4", joint=max)
    found = recover(bench, diagnosis(), options, Limits(max_drop))
    assert found.met
    check_price(bench, options, max_drop, found)


def test_a_rung_that_does_not_help_is_learned_and_left():
    """Eight bits were to cure nearly all of it, but only floats do, as where what is read has outliers."""
    bench, options = case((256, 256, 256, 256), ("int4/int4",) * 3, (0.01, 0.5, 0.01), target="t4")
    bench.lost = lambda layer, p: {"l1": 0.5}.get(layer, 0.01) if p.activation.is_integer else 0.0
    found = recover(bench, diagnosis(), options, Limits(1.0), minimize={"size_bytes": 1.0})
    assert found.met
    assert [(layer, p.activation.is_integer) for layer, p in found.after.change.raised] == [("l1", False)]
    assert any("drop is still" in vain.why for vain in found.vain)
    assert [str(p) for _, p in found.after.change.raised] == ["fp16/fp16"]


def test_what_overflows_in_fp16_takes_bf16_at_no_price_and_what_bf16_does_not_cure_takes_fp32():
    _, options = case((256,) * 4, ("int8/int8", "fp16/fp16", "int8/int8"), (0.01,) * 3, "reference")
    assert [str(rung["l1"]) for rung in options.rungs[1]] == ["fp16/fp16", "bf16/bf16", "fp32/fp32"]
    assert [str(rung["l0"]) for rung in options.rungs[0]] == ["int8/int8", "fp16/fp16", "fp32/fp32"]
    for cured, expected in (({"bf16", "fp32"}, "bf16/bf16"), ({"fp32"}, "fp32/fp32")):
        fresh, _ = case((256,) * 4, ("int8/int8", "fp16/fp16", "int8/int8"), (0.01,) * 3, "reference")
        fresh.lost = lambda layer, p, cured=cured: 0.5 if layer == "l1" and p.activation.name not in cured else 0.001
        found = recover(fresh, diagnosis(), options, Limits(1.0))
        assert [(layer, str(p)) for layer, p in found.after.change.raised] == [("l1", expected)]
        assert price_of(options, levels_of(options, found.after.change)) == pytest.approx(
            0.0 if expected == "bf16/bf16" else price_of(options, (0, 2, 0))
        )


def test_free_repairs_come_first_and_those_without_effect_are_in_vain():
    clip, bias, useless = Repair("clip", "l0"), Repair("bias", "l1"), Repair("rescale", "l2")
    bench, options = case((64, 64, 64, 64), ("int8/int8",) * 3, (0.3, 0.2, 0.1), undone={clip: 0.3, bias: 0.15})
    found = recover(bench, diagnosis(useless, bias, clip), options, Limits(1.5))
    assert found.after.change.repairs == (clip, bias)
    assert [step.what for step in found.steps[:2]] == ["clip l0", "bias l1"]
    assert found.steps[0].effect.nats == pytest.approx(0.3, abs=1e-4)
    assert (found.steps[0].latency_ms, found.steps[0].size_bytes) == (0.0, 0.0)
    assert ("rescale l2", "no measurable gain") in {(v.what, v.why) for v in found.vain}
    assert [layer for layer, _ in found.after.change.raised] == ["l2"]
    assert sum(s.effect.points for s in found.steps) == pytest.approx(
        found.before.drop_points - found.after.drop_points
    )
    enough = recover(bench, diagnosis(useless, bias, clip), options, Limits(7.0))
    assert (enough.after.change.repairs, enough.after.change.raised) == ((clip,), ())


def test_what_meets_the_limit_already_is_left_alone():
    bench, options = case((64, 64, 64), ("int8/int8",) * 2, (0.01, 0.01))
    found = recover(bench, diagnosis(Repair("clip", "l0")), options, Limits(1.0))
    assert (found.after.change.raised, found.steps, found.vain) == ((), (), ())
    assert (found.met, len(bench.measured)) == (True, 1)


def test_the_whole_network_at_its_widest_always_holds():
    """Whatever is left in integers costs everything, so that no choice of the model's holds but the last rung."""
    bench, options = case((64,) * 13, ("int8/int8",) * 12, (0.01,) * 12, target="reference")
    integers = lambda lost: 1.0 if any(lost) else 0.0  # noqa: E731
    bench.joint, bench.lost = integers, lambda layer, p: float(p.activation.is_integer)
    found = recover(bench, diagnosis(), options, Limits(0.5))
    assert (found.met, len(found.after.change.raised), found.after.drop_points) == (True, 12, 0.0)


def test_clashing_limits_say_by_how_much_and_offer_two_points():
    bench, options = case((256, 256, 256, 256), ("int8/int8",) * 3, (0.3, 0.2, 0.1))
    now = options.costs(options.now)["size_bytes"]
    limits = Limits(0.5, max_size_bytes=now + 1.5 * 256 * 256)  # room for one layer in fp16, and no second
    found = recover(bench, diagnosis(), options, limits)
    assert not found.met
    accurate, cheap = found.nearest
    assert set(accurate.excess(limits)) == {"max_size_bytes"}
    assert set(cheap.excess(limits)) == {"max_drop_points"}
    assert [layer for layer, _ in cheap.change.raised] == ["l0"]
    assert cheap.drop_points == pytest.approx(POINTS_PER_NAT * 0.3, abs=0.1)
    raw = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert raw["nearest"][0]["excess"]["max_size_bytes"] == accurate.costs["size_bytes"] - limits.max_size_bytes
    tiny = recover(bench, diagnosis(), options, Limits(0.5, max_size_bytes=1.0))
    assert not tiny.met
    assert tiny.nearest[1].change.raised == ()


def test_a_metric_of_one_number_is_recovered_without_intervals():
    bench, options = case((64, 64, 64), ("int8/int8",) * 2, (0.3, 0.0))
    known = bench.outcome

    def blind(raised, repairs=()):
        outcome = known(raised, repairs)
        return type(outcome)(None, None, outcome.value)

    bench.outcome = blind
    bench.fp32 = lambda: type(known({}))(None, None, 1.0)
    found = recover(bench, diagnosis(), options, Limits(1.0))
    assert found.met
    assert found.after.drop_interval is None
    assert [layer for layer, _ in found.after.change.raised] == ["l0"]


def test_few_measurements_where_few_of_many_groups_are_bad():
    shares = [0.0] * 60
    shares[7] = shares[41] = 0.4
    bench, options = case((32,) * 61, ("int8/int8",) * 60, shares)
    found = recover(bench, diagnosis(), options, Limits(1.0))
    assert [layer for layer, _ in found.after.change.raised] == ["l7", "l41"]
    assert len(bench.measured) < 45  # 8 blocks, 2 x 2 x log2(8) halves, allocations, putting back, steps


def test_progress_counts_networks():
    bench, options = case((64,) * 9, ("int8/int8",) * 8, (0.1,) * 8)
    said = []
    recover(bench, diagnosis(), options, Limits(1.0), progress=lambda what, done: said.append((what, done)))
    assert {"group testing", "fallbacks"} <= {what for what, _ in said}
    assert [done for _, done in said] == sorted(done for _, done in said)
