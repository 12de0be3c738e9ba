"""Rules, pins, groups and granularity on names as real networks have them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import linear, workload

from haq.errors import InputError
from haq.precision import BIT_WIDTHS, Assignment
from haq.space import Rule, block_of, build_space
from haq.workload import Workload

RESNET = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.downsample.0", "fc")
BERT = tuple(f"encoder.layer.{i}.attention.self.{p}" for i in (0, 1) for p in ("query", "key", "value"))


def names(space):
    return [group.name for group in space.groups]


def test_without_rules_every_layer_may_take_every_width():
    space = build_space(workload())
    assert names(space) == ["a", "b", "c", "d"]
    assert all(group.bits == BIT_WIDTHS for group in space.groups)
    assert space.size == 4**4


def test_the_last_rule_that_matches_wins():
    space = build_space(workload(RESNET), rules=(Rule("*", (4, 8)), Rule("layer1.*", (16, 8)), Rule("*.conv2", (32,))))
    assert {g.name: g.bits for g in space.groups} == {
        "conv1": (4, 8),
        "layer1.0.conv1": (8, 16),
        "layer1.0.conv2": (32,),
        "layer2.0.conv1": (4, 8),
        "layer2.0.downsample.0": (4, 8),
        "fc": (4, 8),
    }


def test_pins_win_over_rules_and_leave_nothing_to_choose():
    space = build_space(workload(), rules=(Rule("*", (4, 8)),), pins={"a": 32})
    assert space.groups[0].bits == (32,)
    assert not space.groups[0].is_free
    assert space.size == 2**3


def test_levels_of_groups_become_places_of_layers_among_all_widths():
    space = build_space(
        workload(RESNET), (Rule("*", (8, 32)), Rule("fc", (16,))), (("layer1.*",), ("conv1", "*.0.downsample.0"))
    )
    points = [[0, 1, 0, 0], [1, 0, 1, 0]]
    for point, places in zip(points, space.layer_levels(points), strict=True):
        assert space.assignment(point) == Assignment.of(dict(zip(RESNET, (BIT_WIDTHS[i] for i in places), strict=True)))


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ({"rules": (Rule("layer1.0.conv3", (8,)),)}, "nearest: layer1.0.conv2, layer1.0.conv1"),
        ({"pins": {"fcc": 8}}, "nearest: fc"),
        ({"pins": {"layer1.0": 8}}, "write 'layer1.0.*'"),
        ({"groups": (("conv1", "nothing*"),)}, "nearest:"),
    ],
)
def test_a_pattern_that_matches_no_layer_is_refused_with_the_way_out(arguments, nearest):
    with pytest.raises(InputError, match="matches no layer") as error:
        build_space(workload(RESNET), **arguments)
    assert nearest in str(error.value)


def test_widths_that_cannot_be_searched_are_refused():
    with pytest.raises(InputError, match="pin has bit-widths that cannot be searched"):
        build_space(workload(), pins={"a": 5})


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("conv1", "conv1"),
        ("layer1.0.conv1", "layer1.0"),
        ("layer2.0.downsample.0", "layer2.0"),
        ("features.4.block.1.0", "features.4"),
        ("features.0.0", "features.0.0"),
        ("encoder.layer.3.attention.self.query", "encoder.layer.3"),
        ("encoder.layer.3.attention.self/matmul_0", "encoder.layer.3"),
        ("_blocks.11._depthwise_conv", "_blocks.11"),
        ("stages.1.blocks.2.mlp.fc1", "stages.1.blocks.2"),
        ("classifier.3", "classifier.3"),
        ("layer10.conv", "layer10.conv"),
    ],
)
def test_a_block_ends_at_its_number(module, block):
    assert block_of(module) == block


def test_block_granularity_makes_one_choice_per_residual_block():
    assert names(build_space(workload(RESNET), granularity="block")) == ["conv1", "layer1.0", "layer2.0", "fc"]


def test_model_granularity_makes_one_choice_and_a_pinned_layer_leaves_it():
    space = build_space(workload(RESNET), granularity="model", pins={"conv1": 8})
    assert [(g.name, len(g.layers)) for g in space.groups] == [("conv1", 1), ("model", 5)]
    assert space.size == 4


def test_layers_of_a_block_that_may_take_different_widths_are_chosen_apart():
    space = build_space(workload(RESNET), rules=(Rule("layer1.0.conv2", (8, 16)),), granularity="block")
    assert names(space) == ["conv1", "layer1.0", "layer1.0:layer1.0.conv2", "layer2.0", "fc"]


def test_an_unknown_granularity_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'block'"):
        build_space(workload(), granularity="blocks")


def test_a_group_ties_all_layers_that_match_any_of_its_patterns():
    space = build_space(workload(BERT), groups=(("*.query", "*.key"),))
    assert [len(g.layers) for g in space.groups] == [4, 1, 1]


def test_a_placeholder_ties_only_where_it_is_the_same():
    pattern = "encoder.layer.{i}.attention.self."
    space = build_space(workload(BERT), groups=((pattern + "query", pattern + "key", pattern + "value"),))
    assert [g.layers for g in space.groups] == [BERT[:3], BERT[3:]]


def test_tied_layers_may_take_what_every_one_of_them_may():
    space = build_space(workload(), rules=(Rule("a", (4, 8)), Rule("b", (8, 16))), groups=(("a", "b"),))
    assert space.groups[0].bits == (8,)


def test_tied_layers_without_a_common_width_are_refused():
    with pytest.raises(InputError, match="no bit-width in common"):
        build_space(workload(), pins={"a": 4, "b": 8}, groups=(("a", "b"),))


def test_natural_ties_share_a_choice_also_through_a_common_layer_and_with_explicit_groups():
    space = build_space(workload(RESNET), groups=(("conv1", "fc"),), ties=((RESNET[3], RESNET[4]), (RESNET[4], "fc")))
    assert [g.layers for g in space.groups] == [("conv1", *RESNET[3:]), RESNET[1:2], RESNET[2:3]]
    assert space.yielded == ()


def test_a_pinned_layer_leaves_its_natural_tie_and_the_rest_stays_tied():
    space = build_space(workload(BERT[:3]), pins={"*.value": 8}, ties=(BERT[:3],))
    assert [(g.layers, g.bits) for g in space.groups] == [(BERT[:2], BIT_WIDTHS), (BERT[2:3], (8,))]
    assert space.yielded == (BERT[:3],)


def test_a_natural_tie_yields_where_rules_leave_nothing_in_common_or_an_earlier_tie_took_it():
    rules = (Rule("a", (4, 8)), Rule("b", (4, 8, 16)), Rule("c", (16, 32)))
    space = build_space(workload(), rules, ties=(("a", "b"), ("b", "c"), ("c", "d")))
    assert [(g.layers, g.bits) for g in space.groups] == [(("a", "b"), (4, 8)), (("c", "d"), (16, 32))]
    assert space.yielded == (("b", "c"),)


@given(st.data())
def test_natural_ties_never_make_a_space_impossible_and_hold_unless_they_yield(data):
    some = st.sets(st.sampled_from(BIT_WIDTHS), min_size=1).map(tuple)
    rules = [Rule(name, data.draw(some)) for name in "abcd"]
    tie = st.sets(st.sampled_from("abcd"), min_size=2).map(lambda names: tuple(sorted(names)))
    ties = data.draw(st.lists(tie, unique=True))
    space = build_space(workload(), rules, ties=ties)
    held = [tie for tie in ties if any(set(tie) <= set(group.layers) for group in space.groups)]
    assert set(ties) == set(held) | set(space.yielded)
    for name, rule in zip("abcd", rules, strict=True):
        (group,) = (group for group in space.groups if name in group.layers)
        assert set(group.bits) <= set(rule.bits)


def test_calls_of_one_module_and_layers_of_one_weight_share_a_choice():
    nodes = (
        linear("embed", 10, "x", key="table"),
        linear("body", 10, "embed"),
        linear("body@1", 10, "body", key="body.weight"),
        linear("head", 10, "body@1", key="table"),
    )
    space = build_space(Workload("tied", (("x", (1,)),), nodes, ("head",)), pins={"head": 8})
    assert [(g.name, g.layers, g.bits) for g in space.groups] == [
        ("embed", ("embed", "head"), (8,)),
        ("body", ("body", "body@1"), BIT_WIDTHS),
    ]


def test_an_assignment_outside_the_space_is_refused_by_group():
    space = build_space(workload(), rules=(Rule("*", (4, 8)),))
    with pytest.raises(InputError, match="group 'b'"):
        space.levels(Assignment.of({"a": 4, "b": 32, "c": 4, "d": 4}))
    with pytest.raises(InputError, match="nothing"):
        space.levels(Assignment.of({"b": 4, "c": 4, "d": 4}))


def test_a_uniform_width_takes_the_next_wider_allowed_one_else_the_widest():
    space = build_space(workload(), rules=(Rule("a", (8, 16)), Rule("b", (4,))))
    assert space.assignment(space.uniform(4)) == Assignment.of({"a": 8, "b": 4, "c": 4, "d": 4})
    assert space.assignment(space.uniform(32)) == Assignment.of({"a": 16, "b": 4, "c": 32, "d": 32})


@given(st.data())
def test_levels_invert_assignment_and_entries_keep_the_workloads_order(data):
    net = workload(RESNET)
    rules = data.draw(
        st.lists(
            st.builds(Rule, st.sampled_from(("*", "layer1.*", "fc")), st.sets(st.sampled_from(BIT_WIDTHS), min_size=1))
        )
    )
    rules = [dataclasses.replace(r, bits=tuple(r.bits)) for r in rules]
    space = build_space(net, rules=rules, granularity=data.draw(st.sampled_from(("model", "block", "layer"))))
    levels = tuple(data.draw(st.integers(0, len(g.bits) - 1)) for g in space.groups)
    assignment = space.assignment(levels)
    assert tuple(assignment) == net.layer_names
    assert space.levels(assignment) == levels
