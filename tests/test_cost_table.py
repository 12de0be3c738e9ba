"""The table against the slow path, on every shipped target with every option, and against arithmetic by hand."""

import importlib.util
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import attention, conv, linear, product, relu, residual

from haq.errors import InputError
from haq.hardware import table as module
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import list_profiles, load_profile, option_titles
from haq.hardware.quads import QUAD, cover
from haq.hardware.size import size_bytes
from haq.hardware.table import cost_table
from haq.precision import BIT_WIDTHS, Assignment
from haq.scaling import PLAIN, Scaling
from haq.spacefile import load_space
from haq.tracecache import workload_of
from haq.workload import GlueOp, LayerSpec, WeightSpec, Workload

NAMES = [profile.name for profile in list_profiles()]
TARGETS = NAMES + [f"{name}:{option}" for name in NAMES for option in option_titles(name)]
SHAPE = (64, 8, 8)


def assignment(net, levels, bits=BIT_WIDTHS):
    return Assignment.of(dict(zip(net.layer_names, (bits[level] for level in levels), strict=True)))


def slow(net, levels, profile, batch, bits=BIT_WIDTHS, scaling=PLAIN):
    executed = legalize(net, assignment(net, levels, bits), profile, scaling).executed
    return estimate(net, executed, profile, batch=batch).figures()


def assert_same(net, profile, levels, batch=1, bits=BIT_WIDTHS, scaling=PLAIN):
    """The table says of every candidate what the slow path says."""
    table = cost_table(net, profile, batch=batch, bits=bits, scaling=scaling)
    priced = table.price(levels)
    for row, candidate in enumerate(levels):
        expected, found = slow(net, candidate, profile, batch, bits, scaling), priced.row(row)
        assert found == pytest.approx(expected, rel=1e-9, abs=0)
        assert found["activation_peak_bytes"] == expected["activation_peak_bytes"]
        assert found["size_bytes"] == expected["size_bytes"]
        assert table.figures(candidate) == expected
    return priced


def every(count):
    return np.array(list(itertools.product(range(4), repeat=count)), dtype=np.uint8)


def heads():
    """Attention with both products around a softmax, then glue of constants only and a layer that nothing reads."""
    rows = (16, 64)
    nodes = (
        linear("q", "x", 64, 64, 16),
        linear("k", "x", 64, 64, 16),
        linear("v", "x", 64, 64, 16),
        product("attn/matmul_0", "q", "k", 16, 16, 16, 4),
        GlueOp("softmax", "softmax", ("attn/matmul_0",), ((4, 16, 16),), (4, 16, 16)),
        product("attn/matmul_1", "softmax", "v", 16, 16, 16, 4),
        GlueOp("position", "norm", ("y",), (rows,), rows, 64),
        GlueOp("add", "add", ("attn/matmul_1", "position"), (rows, rows), rows),
        linear("out", "add", 64, 64, 16, bias=64),
        linear("unused", "position", 64, 32, 16),
    )
    return Workload("heads", (("x", rows), ("y", rows)), nodes, ("out", "unused"), 64)


def tied(*, bias=0):
    """Three layers of 10 x 10 on one weight, the last two being calls of one module."""
    names = ("a", "b", "b@1")
    weight = WeightSpec("shared", (10, 10), 0)
    nodes = tuple(
        replace(linear(name, source, 10, 10, bias=bias), weight=weight)
        for name, source in zip(names, ("x", "a", "b"), strict=True)
    )
    return Workload("tied", (("x", (10,)),), nodes, ("b@1",))


@st.composite
def networks(draw):
    """Convolutions and glue of all kinds in any order, reading whatever is there."""
    made, nodes = ["x"], []
    for number in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(("conv", "depthwise", "activation", "smooth", "norm", "pool", "add", "reshape")))
        source, other = (made[draw(st.integers(0, len(made) - 1))] for _ in range(2))
        name = f"{kind}{number}"
        if kind in ("conv", "depthwise"):
            groups = 64 if kind == "depthwise" else 1
            nodes.append(conv(name, source, 64, 64, 8, draw(st.sampled_from((1, 3))), groups, bias=64))
        elif kind == "add":
            nodes.append(GlueOp(name, "add", (source, other), (SHAPE, SHAPE), SHAPE))
        elif kind == "reshape":  # a concatenation, back to 64 channels
            wide = (128, 8, 8)
            nodes.append(GlueOp(name, "reshape", (source, other), (SHAPE, SHAPE), wide))
            nodes.append(conv(f"{name}.conv", name, 128, 64, 8, 1))
            name = f"{name}.conv"
        else:
            nodes.append(GlueOp(name, kind, (source,), (SHAPE,), SHAPE, 64))
        made.append(name)
    return Workload(
        "random", (("x", SHAPE),), tuple(nodes), tuple(draw(st.sets(st.sampled_from(made[1:]), min_size=1)))
    )


def draw_levels(data, net, most=8):
    row = st.lists(st.integers(0, 3), min_size=len(net.layers), max_size=len(net.layers))
    rows = data.draw(st.lists(row, min_size=1, max_size=most))
    return np.array(rows, dtype=np.uint8).reshape(len(rows), len(net.layers))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), batch=st.integers(1, 64), group=st.sampled_from((None, 32, 64, 128)), per_token=st.booleans())
def test_the_table_and_the_slow_path_agree_on_any_network(target, data, batch, group, per_token):
    net = data.draw(st.one_of(networks(), st.sampled_from((residual(), attention(), heads(), tied(bias=10)))))
    scaling = Scaling(group, per_token)
    assert_same(net, load_profile(target), draw_levels(data, net), batch, scaling=scaling)


@pytest.mark.parametrize("space", ["resnet50", "densenet121", "bert_base"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_table_and_the_slow_path_agree_on_real_networks(space, target):
    if space.startswith("bert") and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    net = workload_of(load_space(space))
    levels = np.random.default_rng(0).integers(0, 4, (20, len(net.layers)), dtype=np.uint8)
    assert_same(net, load_profile(target), levels, batch=2)
    assert_same(net, load_profile(target), levels, batch=2, scaling=Scaling(64, per_token=True))


def test_one_layer_by_hand():
    # reference: 100 GB/s, nothing fixed; a row by 4096 x 4096, int8 with a scale per output row and one for its input
    net = Workload("one", (("x", (4096,)),), (linear("l", "x", 4096, 4096),), ("l",))
    priced = cost_table(net, load_profile("reference"), batch=1).price([[3], [1]])
    int8_bytes = 4096**2 + 4 * 4096
    # fp32 reads and writes four bytes a value; int8 reads its input in fp32 and writes one byte
    traffic = [4 * (4096**2 + 2 * 4096), int8_bytes + 4 * 4096 + 4096]
    assert priced.traffic_bytes.tolist() == traffic
    assert priced.latency_ms == pytest.approx([1e3 * t / 100e9 for t in traffic])
    assert priced.size_bytes.tolist() == [4 * 4096**2, int8_bytes + 5]
    assert priced.activation_peak_bytes.tolist() == [2 * 4 * 4096, 4 * 4096 + 4096]


def test_a_change_of_format_between_two_layers_is_in_the_pair_and_not_in_either():
    # fp16 activations of 100 values between, read by int8 on the reference: one byte a value more than int8 would be
    net = Workload("two", (("x", (100,)),), (linear("a", "x", 100, 100), linear("b", "a", 100, 100)), ("b",))
    table = cost_table(net, load_profile("reference"), batch=1)
    alike8, alike16, mixed, back = table.price([[1, 1], [2, 2], [2, 1], [1, 2]]).traffic_bytes.tolist()
    assert mixed + back - alike8 - alike16 == pytest.approx(100 * (2 - 1))


def test_three_layers_that_share_a_weight_store_it_once_per_format():
    net, profile = tied(), load_profile("reference")
    # 10 x 10: 50 + 40 bytes in int4, 100 + 40 in int8, 200 in fp16; five more for each integer operand
    priced = cost_table(net, profile, batch=1).price([[0, 0, 0], [0, 1, 0], [1, 0, 2], [2, 2, 2]])
    assert priced.size_bytes.tolist() == [90 + 15, 90 + 140 + 15, 90 + 140 + 200 + 10, 200]
    assert_same(net, profile, every(3))


def test_the_bias_of_a_module_that_runs_twice_is_stored_once_per_width():
    net, profile = tied(bias=10), load_profile("reference")
    # a's bias is its own; b's are 2 x 10 bytes in fp16 for both calls, or 20 and 40 where the second is fp32
    priced = cost_table(net, profile, batch=1).price([[2, 2, 2], [2, 2, 3]])
    assert priced.size_bytes.tolist() == [200 + 20 + 20, 200 + 400 + 20 + 20 + 40]
    for target in TARGETS:
        assert_same(net, load_profile(target), every(3))


def test_a_tied_weight_is_stored_with_every_scaling_that_its_layers_take():
    # on the A100 the second layer's 128 inputs make groups, the look-up's rows do not
    weight = WeightSpec("shared", (64, 128), 0)
    nodes = (
        LayerSpec("e", "embedding", ("i",), ((16,),), (16, 128), 0, None, weight),
        replace(linear("l", "e", 128, 64, 16), weight=weight),
    )
    net, profile = Workload("tied", (("i", (16,)),), nodes, ("l",)), load_profile("a100")
    priced = assert_same(net, profile, every(2), scaling=Scaling(32))
    assert priced.size_bytes[0] == (64 * 64 + 64 * 4) + (64 * 64 + 64 * 4 * 4)
    assert cost_table(net, profile, batch=1).price([[0, 0]]).size_bytes[0] == 64 * 64 + 64 * 4


def test_precisions_with_finer_scales_have_levels_in_the_table_that_asks_for_them_alone():
    net, profile, fine = attention(), load_profile("reference"), Scaling(32, per_token=True)
    table = cost_table(net, profile, batch=1, scaling=fine)
    executed = legalize(net, Assignment.uniform(net.layer_names, 4), profile, fine).executed
    assert str(executed["q"]) == "int4g32/int8t"
    assert table.levels(executed) == (0, 0, 0, 1)  # the product runs in int8 at 4 bits and at 8
    assert cost_table(net, profile, batch=1).levels(executed) is None


def test_of_shared_weights_with_different_scales_the_last_counts_as_in_the_size():
    first, second, third = tied().layers
    net = replace(tied(), nodes=(first, replace(second, weight=WeightSpec("shared", (5, 20), 0)), third))
    profile = load_profile("reference")
    priced = cost_table(net, profile, batch=1).price(every(3)).size_bytes
    legal = (legalize(net, assignment(net, levels), profile).executed for levels in every(3))
    assert priced.tolist() == [size_bytes(net, executed) for executed in legal]


def test_energy_is_unknown_for_the_candidates_that_execute_something_without_a_source():
    net, profile = residual(), load_profile("a100:int4_conv")
    levels = every(3)
    priced = assert_same(net, profile, levels)
    unknown = (levels == 0).any(axis=1)  # nobody states the energy of an int4 product
    assert np.isnan(priced.energy_mj).tolist() == unknown.tolist()
    assert "energy_mj" not in priced.row(0)
    assert np.isnan(cost_table(net, load_profile("tpu-v4"), batch=1).price(levels).energy_mj).all()


def test_other_bit_widths_than_all_four_have_their_own_levels():
    profile = load_profile("mobile")
    for bits in ((8,), (8, 16), (4, 8, 32)):
        levels = np.array(list(itertools.product(range(len(bits)), repeat=3)), dtype=np.uint8)
        assert_same(residual(), profile, levels, bits=bits)
    for bits in ((), (16, 8), (8, 8), (2, 4)):
        with pytest.raises(InputError, match=r"some of .* ascending"):
            cost_table(residual(), profile, batch=1, bits=bits)


def test_requested_bits_and_executed_precisions_have_levels_and_others_none():
    net, profile = residual(), load_profile("a100")
    table = cost_table(net, profile, batch=1)
    asked = Assignment.of({"a": 4, "b": 16, "c": 4})
    assert table.levels(asked) == (0, 2, 0)
    executed = legalize(net, asked, profile).executed  # a's int4 runs as int8
    assert table.figures(table.levels(executed)) == estimate(net, executed, profile, batch=1).figures()
    assert (
        table.levels(Assignment.of({**executed, "c": legalize(net, asked, load_profile("tpu-v4")).executed["c"]}))
        is None
    )


def test_no_figure_depends_on_what_stands_beside_a_candidate(monkeypatch):
    net, profile = attention(), load_profile("a100")
    table = cost_table(net, profile, batch=1)
    levels = every(4)
    together = table.price(levels)
    assert table.price(np.asfortranarray(levels.astype(np.int64))).latency_ms.tolist() == together.latency_ms.tolist()
    monkeypatch.setattr(module, "CHUNK", 7)
    apart = table.price(levels)
    for name in ("latency_ms", "size_bytes", "traffic_bytes", "activation_peak_bytes", "energy_mj"):
        assert getattr(together, name).tolist() == getattr(apart, name).tolist()
    assert len(table.price(levels[:0]).latency_ms) == 0


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (
            np.zeros((2, 4), dtype=np.uint8),
            r"another shape; got \(2, 4\); expected integers of shape \(candidates, 3\)",
        ),
        (np.zeros(3, dtype=np.uint8), "another shape"),
        ([[0, 1, 4]], "no such level; got 4; expected .* from 0 to 3"),
        ([[0, -1, 0]], "no such level; got -1"),
        ([[0.0, 1.0, 2.0]], "no integers; got 'float64'"),
        (np.zeros((1, 3), dtype=bool), "no integers; got 'bool'"),
    ],
)
def test_levels_that_cannot_be_meant_are_refused(levels, message):
    table = cost_table(residual(), load_profile("a100"), batch=1)
    with pytest.raises(InputError, match=message):
        table.price(levels)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_every_layer_and_every_pair_is_in_a_quad(case):
    count, drawn = case
    pairs = {(a, b) for a, b in drawn if a < b}
    quads = cover(count, pairs)
    assert all(0 < len(quad) <= QUAD and len(set(quad)) == len(quad) for quad in quads)
    assert {layer for quad in quads for layer in quad} == set(range(count))
    assert all(any({a, b} <= set(quad) for quad in quads) for a, b in pairs)


def test_a_network_without_layers_has_one_price():
    net = Workload("glue", (("x", SHAPE),), (relu("r", "x", SHAPE),), ("r",))
    priced = assert_same(net, load_profile("a100"), np.zeros((2, 0), dtype=np.uint8))
    assert priced.latency_ms[0] > 0


def test_a_layer_kind_without_a_product_has_a_price():
    look_up = LayerSpec("e", "embedding", ("i",), ((16,),), (16, 8), 0, None, WeightSpec("e.weight", (100, 8), 0))
    net = Workload("rows", (("i", (16,)),), (look_up,), ("e",))
    for target in TARGETS:
        assert_same(net, load_profile(target), every(1))
