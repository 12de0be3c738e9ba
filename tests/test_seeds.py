"""The seeds on a chain whose layers hold 100, 200, 300, ... weights."""

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from search_fakes import workload

from haq.engine.seeds import seeds
from haq.precision import Assignment
from haq.space import Rule, build_space
from haq.workload import LayerSpec, Workload


def asked(net, space):
    return {seed.origin: tuple(space.assignment(seed.levels).values()) for seed in seeds(net, space)}


def test_uniform_widths_come_first_then_protected_ends_then_the_path():
    net = workload(("a", "b", "c", "d", "e"))
    found = asked(net, build_space(net))
    assert list(found.items()) == [
        ("seed:uniform32", (32,) * 5),
        ("seed:uniform16", (16,) * 5),
        ("seed:uniform8", (8,) * 5),
        ("seed:uniform4", (4,) * 5),
        ("seed:4-ends-8", (8, 4, 4, 4, 8)),
        ("seed:8-ends-16", (16, 8, 8, 8, 16)),
        # 400, 300, 200 weights inside, then the ends with 500 and 100.
        ("seed:path1", (8, 8, 8, 4, 8)),
        ("seed:path2", (8, 8, 4, 4, 8)),
        ("seed:path4", (8, 4, 4, 4, 4)),
    ]


def test_attention_products_stay_wide_in_their_own_seed_and_on_the_path():
    net = workload(("a", "b", "c"))
    product = LayerSpec("a/matmul_0", "matmul", ("a", "a"), ((1,), (1,)), (1,), 50, None)
    net = Workload("attention", net.inputs, (*net.nodes[:1], product, *net.nodes[1:]), net.outputs)
    found = asked(net, build_space(net))
    assert found["seed:8-products-16"] == (8, 16, 8, 8)
    assert all(bits[1] == 8 for origin, bits in found.items() if origin.startswith("seed:path"))


def test_a_layer_that_may_not_be_narrow_keeps_its_next_wider_width():
    net = workload()
    found = asked(net, build_space(net, rules=(Rule("b", (16, 32)),), pins={"a": 32}))
    assert found["seed:uniform4"] == (32, 16, 4, 4)


@given(st.integers(1, 12), st.sampled_from(("model", "block", "layer")))
def test_seeds_are_distinct_lie_in_the_space_and_narrow_along_the_path(count, granularity):
    net = workload(tuple(f"layer.{i}.conv" for i in range(count)))
    space = build_space(net, granularity=granularity)
    found = seeds(net, space)
    assert len({seed.levels for seed in found}) == len(found)
    for seed in found:
        assert space.levels(space.assignment(seed.levels)) == seed.levels
    path = [space.assignment(s.levels) for s in found if s.origin.startswith("seed:path")]
    assert len(path) <= 8
    for wide, narrow in itertools.pairwise(path):
        assert all(narrow[layer] <= wide[layer] for layer in wide)


def test_a_network_of_attention_products_alone_has_only_uniform_seeds():
    product = LayerSpec("m/matmul_0", "matmul", ("x", "x"), ((1,), (1,)), (1,), 50, None)
    net = Workload("products", (("x", (1,)),), (product,), ("m/matmul_0",))
    assert asked(net, build_space(net)) == {f"seed:uniform{b}": (b,) for b in (32, 16, 8, 4)}
    assert replace(net, name="same").layer_names == tuple(Assignment.uniform(net.layer_names, 8))
