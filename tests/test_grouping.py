"""Natural groups: by hand on small graphs, on shipped networks by their architecture, and as HAWQ-V3 links layers."""

from __future__ import annotations

import dataclasses

import pytest
from nets import attention, conv, linear, product, relu, residual

from haq.grouping import natural_groups
from haq.space import build_space
from haq.spacefile import load_space
from haq.tracecache import workload_of
from haq.workload import GlueOp, WeightSpec, Workload

SHAPE = (8, 4, 4)


def of(*nodes):
    return Workload("net", (("x", SHAPE), ("y", SHAPE)), nodes, (nodes[-1].name,))


def glue(name, kind, *inputs, shapes=None):
    return GlueOp(name, kind, inputs, shapes or (SHAPE,) * len(inputs), SHAPE)


def groups_of(name):
    return set(map(frozenset, natural_groups(workload_of(load_space(name)))))


def test_a_tensor_that_glue_computes_anew_is_another_tensor():
    net = of(conv("a", "x", 8, 8, 4), relu("r", "x", SHAPE), conv("b", "r", 8, 8, 4), conv("c", "x", 8, 8, 4))
    assert natural_groups(net) == (("a", "c"),)


def test_a_block_is_tied_at_its_entry_and_at_its_exit():
    net = of(
        conv("down", "x", 8, 8, 4),
        conv("first", "x", 8, 8, 4),
        relu("r", "first", SHAPE),
        conv("last", "r", 8, 8, 4),
        glue("add", "add", "last", "down"),
    )
    assert natural_groups(net) == (("down", "first"), ("down", "last"))
    assert [g.layers for g in build_space(net, ties=natural_groups(net)).groups] == [("down", "first", "last")]


def test_identity_shortcuts_through_an_earlier_add_make_no_chain():
    net = of(
        conv("a", "x", 8, 8, 4),
        conv("b", "a", 8, 8, 4),
        glue("add1", "add", "b", "a"),
        conv("c", "add1", 8, 8, 4),
        glue("add2", "add", "c", "add1"),
        conv("d", "add2", 8, 8, 4),
        glue("add3", "add", "d", "add2"),
    )
    assert natural_groups(net) == (("a", "b"),)


@pytest.mark.parametrize(
    "joined",
    [
        glue("j", "reshape", "a", "b"),
        glue("j", "mul", "a", "b"),
        glue("j", "add", "a"),
        glue("j", "add", "a", "a"),
        glue("j", "add", "a", "x"),
        glue("j", "add", "a", "r"),
        glue("j", "add", "a", "b", shapes=(SHAPE, (8, 1, 1))),
    ],
    ids=["concat", "product", "constant", "twice", "input", "activation", "broadcast"],
)
def test_only_a_sum_of_two_layers_of_one_shape_ties_them(joined):
    net = of(conv("a", "x", 8, 8, 4), conv("b", "y", 8, 8, 4), relu("r", "b", SHAPE), joined)
    assert natural_groups(net) == ()


def test_products_and_embeddings_are_never_tied():
    net = attention()
    assert natural_groups(net) == (("q", "k"),)
    pair = [product(name, "q", "k", 16, 16, 16, 4) for name in ("one", "two")]
    table = dataclasses.replace(linear("t", "embed", 64, 64), kind="embedding", weight=WeightSpec("t", (64, 64), 0))
    assert natural_groups(dataclasses.replace(net, nodes=(*net.nodes, *pair, table))) == (("q", "k"),)


def test_a_shortcut_from_an_activation_ties_nothing():
    assert natural_groups(residual()) == ()


HAWQ_V3_LINKS = {
    # Yao et al. 2021, HAWQ-V3, the published ILP: `linked_layers`, and the weights (8 bits each) of the first link.
    # Layers count from 0 without the stem, each block as conv1, conv2(, conv3), downsample.
    "resnet18": (((4, 6), (9, 11), (14, 16)), (0.0703125 * 2**20, 0.0078125 * 2**20), (2, 2, 2, 2), 2),
    "resnet50": (((0, 3), (10, 13), (23, 26), (42, 45)), (0.004096e6, 0.016384e6), (3, 4, 6, 3), 3),
}


@pytest.mark.parametrize("name", HAWQ_V3_LINKS)
def test_every_link_of_hawq_v3_is_inside_a_group(name):
    links, weights, blocks, convolutions = HAWQ_V3_LINKS[name]
    counted = []
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            counted += [f"layer{stage}.{block}.conv{i}" for i in range(1, convolutions + 1)]
            if block == 0 and (stage > 1 or convolutions == 3):
                counted.append(f"layer{stage}.0.downsample.0")
    net = workload_of(load_space(name))
    elements = {layer.name: layer.weight.elements for layer in net.layers}
    assert tuple(elements[counted[i]] for i in links[0]) == weights
    found = build_space(net, ties=natural_groups(net)).groups
    for link in links:
        assert any({counted[i] for i in link} <= set(group.layers) for group in found)


@pytest.mark.parametrize(("name", "stages", "last"), [("resnet18", (2, 3, 4), 2), ("resnet50", (1, 2, 3, 4), 3)])
def test_resnets_tie_the_downsample_with_what_reads_its_input_and_what_it_is_added_to(name, stages, last):
    entry = {frozenset((f"layer{s}.0.downsample.0", f"layer{s}.0.conv1")) for s in stages}
    leave = {frozenset((f"layer{s}.0.downsample.0", f"layer{s}.0.conv{last}")) for s in stages}
    assert groups_of(name) == entry | leave


def test_bert_ties_query_key_and_value_of_each_layer_and_nothing_else():
    parts = ("query", "key", "value")
    assert groups_of("bert_base") == {
        frozenset(f"bert.encoder.layer.{i}.attention.self.{part}" for part in parts) for i in range(12)
    }


def test_googlenet_ties_the_three_heads_that_read_the_tensor_itself_and_not_the_one_behind_a_pool():
    modules = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    heads = ("branch1", "branch2.0", "branch3.0")
    assert groups_of("googlenet") == {frozenset(f"inception{m}.{h}.conv" for h in heads) for m in modules}


def test_mobilenet_ties_the_two_projections_that_each_first_shortcut_adds():
    # Blocks 3, 5, 6, 8, 10 and 11 keep their shape and have a shortcut; that of 6 and 11 comes from an earlier add.
    pairs = (
        ("2.block.2", "3.block.2"),
        ("4.block.3", "5.block.3"),
        ("7.block.3", "8.block.3"),
        ("9.block.3", "10.block.3"),
    )
    assert groups_of("mnist_mobilenet_v3_small") == {frozenset(f"features.{p}.0" for p in pair) for pair in pairs}


def test_densenet_concatenates_and_ties_nothing():
    assert groups_of("densenet121") == set()
