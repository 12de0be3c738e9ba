"""Terms over groups against the table that they come from, which is checked against the slow path elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import attention, linear, relu, residual

from haq.hardware.groupterms import group_terms
from haq.hardware.profile import load_profile
from haq.hardware.table import cost_table
from haq.scaling import Scaling
from haq.space import Rule, build_space
from haq.spacefile import load_space
from haq.terms import Terms
from haq.tracecache import workload_of
from haq.workload import WeightSpec, Workload

NAMES = ("size_bytes", "latency_ms", "traffic_bytes", "energy_mj")


def assert_same(table, space, points):
    """The terms say of every point what the table says, and the peak is to the byte."""
    terms, priced = group_terms(table, space), table.price(space.layer_levels(points)).by_name()
    assert set(terms.figures) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(terms.figures[name].total(points), priced[name], rtol=1e-9, atol=0)
    peak = np.max([step.total(points) for step in terms.peak], axis=0)
    assert np.rint(peak).tolist() == priced["activation_peak_bytes"].tolist()
    return terms


def draw_points(space, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, len(group.bits), count) for group in space.groups], axis=1)


@pytest.mark.parametrize("name", ["mnist_resnet18", "bert_base"])
@pytest.mark.parametrize("target", ["a100", "a100:int4_conv", "tpu-v4", "mobile", "mobile-cpu", "reference"])
def test_totals_are_the_tables_on_real_networks_in_their_own_spaces(name, target):
    if name.startswith("bert"):
        pytest.importorskip("transformers")
    file = load_space(name)
    net = workload_of(file)
    rules = tuple(Rule(rule.layers, tuple(rule.bits)) for rule in file.rules)
    space = build_space(net, rules, tuple(group.layers for group in file.groups))
    table = cost_table(net, load_profile(target), batch=3)
    terms = assert_same(table, space, draw_points(space, 40))
    assert len(terms.peak) < len(table.entries.lives.until)  # some step is always beneath another
    fine = cost_table(net, load_profile(target), batch=1, scaling=Scaling(64, per_token=True))
    assert_same(fine, space, draw_points(space, 5, seed=1))


@settings(max_examples=40, deadline=None)
@given(
    net=st.sampled_from((residual(), attention())),
    target=st.sampled_from(("a100", "mobile", "reference", "t4")),
    granularity=st.sampled_from(("layer", "block", "model")),
    bits=st.lists(st.sets(st.sampled_from((4, 8, 16, 32)), min_size=1), min_size=4, max_size=4),
    tie=st.booleans(),
    batch=st.integers(1, 9),
)
def test_totals_are_the_tables_under_any_pins_rules_and_groups(net, target, granularity, bits, tie, batch):
    modules = list(dict.fromkeys(layer.module for layer in net.layers))
    if tie:
        bits = [bits[0]] * 4
    rules = [Rule(module, tuple(allowed)) for module, allowed in zip(modules, bits, strict=False)]
    space = build_space(net, rules, [modules[:2]] if tie else (), granularity)
    assert_same(cost_table(net, load_profile(target), batch=batch), space, draw_points(space, 12))


def test_bytes_that_layers_share_are_the_groups_own():
    weight = WeightSpec("shared", (10, 10), 0)
    nodes = tuple(
        replace(linear(name, source, 10, 10, bias=10), weight=weight)
        for name, source in zip(("a", "b", "b@1"), ("x", "a", "b"), strict=True)
    )
    net = Workload("tied", (("x", (10,)),), nodes, ("b@1",))
    space = build_space(net)
    assert len(space.groups) == 1
    table = cost_table(net, load_profile("reference"), batch=1)
    terms = assert_same(table, space, [[0], [1], [2], [3]])
    # fp16: one weight of 200 bytes, a's bias of 20 bytes and b's, which serves both calls
    assert terms.figures["size_bytes"].total([[2]]) == 240
    assert not terms.figures["latency_ms"].pairs


def test_a_network_without_layers_is_all_constant():
    net = Workload("glue", (("x", (8,)),), (relu("r", "x", (8,)),), ("r",))
    terms = group_terms(cost_table(net, load_profile("reference"), batch=1), build_space(net))
    assert terms.figures["size_bytes"].total(np.zeros((2, 0), dtype=int)).tolist() == [0.0, 0.0]


def test_a_total_is_the_constant_and_the_terms_of_what_is_chosen_by_hand():
    terms = Terms(
        1.0, (np.array([10.0, 20.0]), np.array([100.0, 200.0, np.nan])), {(0, 1): np.arange(6.0).reshape(2, 3)}
    )
    # 1 + 20 + 100 + pair[1, 0] = 3; NaN is unknown and stays so
    assert terms.total([[1, 0], [0, 1]]).tolist() == [124.0, 1 + 10 + 200 + 1.0]
    assert np.isnan(terms.total([[0, 2]])[0])


@given(st.integers(1, 40), st.integers(0, 99))
def test_a_total_does_not_depend_on_what_stands_beside_a_point(groups, seed):
    rng = np.random.default_rng(seed)
    terms = Terms(rng.random(), tuple(rng.random(4) for _ in range(groups)))
    points = rng.integers(0, 4, (7, groups))
    alone = [terms.total(point[None])[0] for point in points]
    assert terms.total(points).tolist() == alone == terms.total(np.asfortranarray(points)).tolist()
