"""Every reason why fewer bits do not help: where it holds, with its numbers, and where it does not."""

import pytest
from machines import GB_S, chain, figure, machine, one, priced, why
from nets import attention, conv, linear, product, residual

from haq.explain import explain
from haq.hardware.machine import Attention, Vector
from haq.hardware.profile import load_profile
from haq.precision import Assignment
from haq.workload import GlueOp, Workload

COMPUTE = one(conv("c", "x", 64, 64, 64))
"""64 x 576 x 4096 multiply-accumulates on 262,144 values: bound by arithmetic on the reference in every format."""
MEMORY = one(linear("l", "x", 4096, 4096))
"""One row by 4096 x 4096."""


def test_bits_that_are_multiplied_in_a_wider_format_are_storage_only():
    assert "storage only on tpu-v4: 4 and 8 bits are multiplied as bf16" in why(COMPUTE, load_profile("tpu-v4"), 8, "c")
    assert "storage only on tpu-v4: 4 bits are multiplied as bf16" in why(COMPUTE, load_profile("tpu-v4"), 4, "c")
    # int8 has a row of arithmetic of its own on the A100; int4 there is multiplied as fp16
    assert "storage only" not in why(COMPUTE, load_profile("a100"), 8, "c")
    assert "storage only on a100: 4 bits are multiplied as fp16" in why(MEMORY, load_profile("a100"), 8, "l")


def test_a_row_of_arithmetic_that_is_no_faster_saves_traffic_only():
    said = "16 bits save traffic only: fp16/fp16 is multiplied no faster than fp32/fp32"
    assert said in why(COMPUTE, load_profile("mobile-cpu"), 16, "c")
    assert "save traffic only" not in why(COMPUTE, load_profile("reference"), 16, "c")


def test_a_fallback_says_what_runs_and_why_at_widths_up_to_the_one_that_runs():
    profile = load_profile("a100")
    assert "4 bits run as int8/int8: no library has int4 kernels" in why(COMPUTE, profile, 8, "c")
    assert "4 bits run" not in why(MEMORY, profile, 8, "l")
    mobile = load_profile("mobile")
    assert "32 bits run as fp16/fp16: the HTP runs fp32 graphs as fp16" in why(COMPUTE, mobile, 32, "c")
    assert "32 bits" not in why(COMPUTE, mobile, 8, "c")


def test_bits_that_mean_the_same_as_wider_ones_are_told_too():
    said = "4 bits run as int8/int8: what 8 bits mean too"
    assert said in why(attention(), load_profile("reference"), 8, "attn/matmul_0")
    assert said not in why(attention(), load_profile("reference"), 8, "q")


def test_a_kernel_whose_fixed_cost_is_its_longest_part_is_overhead_bound():
    net, profile = one(conv("c", "x", 64, 64, 8)), machine(kernel_us=3)
    # the arithmetic of int8 hides the traffic; the input, in fp32, has 3 bytes more a value to read
    spent_us = 3 + 1e6 * (2 * 64 * 576 * 64 / 4e12 + 3 * 4096 / GB_S)
    assert f"overhead-bound at batch 1: 3.0 of {spent_us:.1f} us are the fixed cost of a kernel" in why(
        net, profile, 8, "c"
    )
    assert "overhead-bound" not in why(net, profile, 8, "c", 64)


def test_a_memory_bound_layer_says_what_its_traffic_is():
    reference = load_profile("reference")
    assert "most of it weights: fewer bits save only the bytes they save" in why(MEMORY, reference, 32, "l")
    # with 16 x 16 weights and 4096 rows nearly all bytes are activations, which 4 bits keep in int8
    layers = (linear("k", "x", 16, 16, rows=4096), linear("l", "k", 16, 16, rows=4096))
    tall = Workload("tall", (("x", (4096, 16)),), layers, ("l",))
    assert "most of it activations, which stay int8" in why(tall, reference, 8, "l")
    assert "most of it activations: fewer bits save only" in why(tall, reference, 16, "l")
    assert "memory-bound" not in why(COMPUTE, reference, 8, "c")


def test_a_vector_unit_that_takes_longer_than_multiplying_knows_no_bits():
    slow = machine(vector=Vector(rate=figure(1, "GOP/s")))
    # 64 x 4096 results at 1 G a second are 0.262 ms; multiplying them takes 2 x 64 x 576 x 4096 / 4e12 = 0.0755 ms
    assert "bound by the vector unit: 262 of" in why(COMPUTE, slow, 8, "c")
    fast = machine(vector=Vector(rate=figure(100, "GOP/s")))
    assert "vector unit" not in why(COMPUTE, fast, 8, "c")


def test_scores_inside_a_fused_attention_stay_fp32():
    heads, shape = 4, (4, 64, 64)
    nodes = (
        product("a/matmul_0", "q", "k", 64, 64, 16, heads),
        GlueOp("softmax", "softmax", ("a/matmul_0",), (shape,), shape),
        product("a/matmul_1", "softmax", "v", 64, 16, 64, heads),
    )
    inputs = tuple((name, (heads, 64, 16)) for name in "qkv")
    net = Workload("heads", inputs, nodes, ("a/matmul_1",))
    base = load_profile("reference")
    fusing = base.fusion.model_copy(update={"layer": (*base.fusion.layer, "softmax")})
    slow = machine(attention=Attention(bandwidth=figure(1, "GB/s"))).model_copy(update={"fusion": fusing})
    assert "spent on fp32 scores, whatever the operands" in why(net, slow, 8, "a/matmul_1")
    fast = machine(attention=Attention(bandwidth=figure(20, "TB/s"))).model_copy(update={"fusion": fusing})
    assert "fp32 scores" not in why(net, fast, 8, "a/matmul_1")


def test_an_input_that_takes_longest_to_bring_into_the_format_is_convert_bound():
    profile = machine(convert="kernel")
    # 1024 values come as fp32 and go as int8, 5 bytes each; the layer itself moves less: 1024 + 16 x 1 and weights
    net = one(linear("l", "x", 16, 1, rows=64))
    assert "convert-bound" in why(net, profile, 8, "l")
    assert "convert-bound" not in why(net, profile, 32, "l")


@pytest.mark.parametrize(
    ("tile", "says"),
    [
        ((1, 128, 1), "padded 64 -> 128 columns, 50 % of the work wasted: the matrix unit takes 128 columns at a time"),
        ((1, 1, 1024), "padded 576 -> 1024 depth, 44 % of the work wasted"),
        ((1, 128, 1024), "padded 64 -> 128 columns and 576 -> 1024 depth, 72 % of the work wasted"),
        ((64, 64, 64), ""),
        ((1, 66, 1), ""),  # 64 -> 66 wastes 3 %
    ],
)
def test_padding_is_said_with_its_sides_when_it_wastes_more_than_a_tenth(tile, says):
    found = why(COMPUTE, machine(tile=tile), 8, "c")
    assert says in found
    assert ("padded" in found) == bool(says)


def test_padding_says_the_time_that_it_costs():
    found = why(COMPUTE, machine(tile=(1, 128, 1)), 8, "c")
    # twice 0.0755 ms of int8 arithmetic, half of it lost; then 3 bytes more of each of 64 x 4096 inputs
    spent_us = 1e6 * (2 * 2 * 64 * 576 * 4096 / 4e12 + 3 * 64 * 4096 / GB_S)
    assert f"75.5 of {spent_us:.0f} us are lost" in found


def test_padding_that_hides_behind_memory_is_no_reason():
    assert "padded" not in why(MEMORY, machine(tile=(8, 1, 1)), 32, "l")


def test_blocks_that_leave_units_idle_are_counted():
    # 4096 rows in blocks of 64 by all 64 columns: 64 blocks
    assert "64 blocks on 108 units, 41 % idle" in why(COMPUTE, machine(tile=(64, 64, 1), units=108), 8, "c")
    assert "64 blocks on 48 units in 2 turns, 33 % idle" in why(COMPUTE, machine(tile=(64, 64, 1), units=48), 8, "c")
    assert "idle" not in why(COMPUTE, machine(tile=(64, 64, 1), units=64), 8, "c")
    assert "idle" not in why(COMPUTE, machine(tile=(64, 64, 1)), 8, "c")
    assert "1 block on 8 units" in why(COMPUTE, machine(tile=(4096, 64, 1), units=8), 8, "c")


def test_a_conversion_that_costs_more_than_the_bits_save_is_told_with_both():
    profile, net = machine(kernel_us=5, convert="kernel"), chain()
    mixed = Assignment.of({"a": 16, "b": 8, "c": 16})
    # saved: half of the arithmetic of fp16, which hides the traffic; each of two kernels that convert starts in 5 us
    # and moves 4096 values of 2 + 1 bytes
    saved_us = 1e6 * 2 * 64 * 576 * 64 * (1 / 2e12 - 1 / 4e12)
    extra_us = 2 * (5 + 1e6 * 3 * 4096 / GB_S)
    said = f"from and to fp16 costs {extra_us:.1f} us, more than the {saved_us:.1f} us saved over 16 bits"
    assert f"converting eats the gain: {said}" in why(net, profile, mixed, "b")
    assert "eats the gain" not in why(net, profile, 8, "b")
    # without the fixed cost of a kernel converting is cheaper than what is saved
    assert "eats the gain" not in why(net, machine(convert="kernel"), mixed, "b")


def test_a_conversion_for_nothing_is_told_where_the_layer_itself_gains_nothing():
    profile, net = (
        load_profile("a100"),
        Workload("two", (("x", (64,)),), (linear("a", "x", 64, 64), linear("b", "a", 64, 64)), ("b",)),
    )
    mixed = Assignment.of({"a": 8, "b": 4})  # int4/fp16 between int8: converted, and no faster than int8
    assert "converting for nothing: from int8 costs" in why(net, profile, mixed, "b")
    assert "converting for nothing" not in why(net, profile, 8, "b")


def test_bits_that_only_pay_where_the_neighbours_take_them_too():
    profile, net = machine(kernel_us=5, convert="kernel"), chain()
    said = "8 bits do not pay in one layer alone: converting from and to fp16 costs"
    assert said in why(net, profile, 16, "b")
    assert "in one layer alone" not in why(net, machine(), 16, "b")


def test_a_residual_in_another_format_breaks_the_fused_addition():
    profile, net = machine(convert="kernel"), residual()
    mixed = Assignment.of({"a": 16, "b": 8, "c": 8})
    said = "breaks the fused addition: its operand comes in fp16, not int8, which costs"
    assert said in why(net, profile, mixed, "b")
    assert "breaks" not in why(net, profile, mixed, "a")
    assert "breaks" not in why(net, profile, 8, "b")
    # where the consumer converts as it reads, the addition stays inside
    assert "breaks" not in why(net, machine(), mixed, "b")


def test_a_layer_that_gains_all_that_bits_can_give_has_no_reason():
    assert why(COMPUTE, machine(), 16, "c") == "storage only on reference: 4 bits are multiplied as int8"
    assert why(COMPUTE, machine(), 32, "c").count("\n") == 0


def test_reasons_stand_in_the_order_of_the_time_that_they_are_about():
    for layer in explain(priced(residual(), load_profile("a100"), 4)):
        times = [reason.part_ms for reason in layer.reasons]
        assert times == sorted(times, reverse=True)
