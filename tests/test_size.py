"""Sizes that a reader can redo, and that no scale is free."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import attention, conv, linear, residual

from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.size import fp32_size_bytes, size_bytes
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.workload import Workload

A, B, C = 64 * 27, 64 * 64 * 9, 64 * 10  # weights of the residual net
BIASES = 64 + 64 + 10


def sized(net, precision):
    return size_bytes(net, Assignment.uniform(net.layer_names, Precision.parse(precision)))


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", 4 * (A + B + C) + 4 * BIASES),
        ("fp16", 2 * (A + B + C) + 2 * BIASES),
        # codes, a 4-byte scale per output channel, int32 biases, and scale + zero-point of each layer's input
        ("int8/int8", A + B + C + 4 * (64 + 64 + 10) + 4 * BIASES + 3 * (4 + 1)),
        ("int4/int8", (A + B + C) // 2 + 4 * (64 + 64 + 10) + 4 * BIASES + 3 * (4 + 1)),
        # storage only: activations are bf16 and need no scale, biases take two bytes
        ("int4/bf16", (A + B + C) // 2 + 4 * (64 + 64 + 10) + 2 * BIASES),
    ],
)
def test_the_residual_net_takes_so_many_bytes(precision, expected):
    assert sized(residual(), precision) == expected


def test_fp32_is_four_bytes_a_parameter():
    assert fp32_size_bytes(residual()) == 4 * residual().parameters
    assert fp32_size_bytes(attention()) == 4 * attention().parameters


def test_tied_weights_are_stored_once_unless_their_formats_differ():
    head, again = linear("head", "x", 64, 10), linear("again", "head", 64, 10)
    tied = Workload(
        "tied", (("x", (64,)),),
        (head, type(again)(**{**again.__dict__, "weight": head.weight})), ("again",),
    )  # fmt: skip
    fp32, fp16 = Precision.parse("fp32"), Precision.parse("fp16")
    assert size_bytes(tied, Assignment.of({"head": fp32, "again": fp32})) == 4 * 640
    assert size_bytes(tied, Assignment.of({"head": fp32, "again": fp16})) == 4 * 640 + 2 * 640


def test_norms_and_positions_stay_in_fp32():
    net = attention()
    # 64 parameters of no layer; an attention product stores two scales with zero-points and no weight
    embed, projections = 1000 * 64 // 2 + 4 * 1000, 2 * (64 * 64 // 2 + 4 * 64 + 5)
    assert sized(net, "int4/int8") == embed + projections + 2 * 5 + 4 * 64


def test_an_odd_number_of_int4_codes_rounds_up_to_a_byte():
    net = Workload("odd", (("x", (3,)),), (linear("l", "x", 3, 1),), ("l",))
    assert sized(net, "int4/bf16") == 2 + 4


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        # a scale for each of 768 / 32 = 24 groups of 768 channels: 4 + 32 / 32 = 5 bits a weight
        ("int4g32/fp16", 768 * 768 // 2 + 768 * 24 * 4),
        ("int4g64/fp16", 768 * 768 // 2 + 768 * 12 * 4),
        ("int4g128/fp16", 768 * 768 // 2 + 768 * 6 * 4),
        # a static input has a scale and a zero-point, one per token stores neither
        ("int4g128/int8", 768 * 768 // 2 + 768 * 6 * 4 + 4 + 1),
        ("int4g128/int8t", 768 * 768 // 2 + 768 * 6 * 4),
        ("int8/int8t", 768 * 768 + 768 * 4),
    ],
)
def test_every_scale_of_a_linear_layer_is_counted(precision, expected):
    net = Workload("one", (("x", (128, 768)),), (linear("l", "x", 768, 768, 128),), ("l",))
    assert sized(net, precision) == expected


def test_a_group_of_32_is_five_bits_a_weight():
    net = Workload("one", (("x", (768,)),), (linear("l", "x", 768, 768),), ("l",))
    assert sized(net, "int4g32/fp16") == 768 * 768 * 5 / 8


def test_a_group_that_is_begun_has_a_scale():
    # 100 inputs are a group of 64 and one of 36; 10 channels
    net = Workload("one", (("x", (100,)),), (linear("l", "x", 100, 10),), ("l",))
    assert sized(net, "int4g64/fp16") == 500 + 10 * 2 * 4
    assert sized(net, "int4g128/fp16") == sized(net, "int4/fp16") == 500 + 10 * 4


def test_groups_of_a_convolution_run_along_inputs_and_kernel_and_those_of_an_embedding_along_a_row():
    wide = Workload("conv", (("x", (64, 8, 8)),), (conv("c", "x", 64, 16, 8),), ("c",))
    assert sized(wide, "int4g64/fp16") == 16 * 576 // 2 + 16 * 9 * 4
    depthwise = Workload("depthwise", (("x", (64, 8, 8)),), (conv("c", "x", 64, 64, 8, groups=64),), ("c",))
    assert sized(depthwise, "int4g64/fp16") == sized(depthwise, "int4/fp16") == 64 * 9 // 2 + 64 * 4
    net = attention()  # 1000 rows of 64, two projections of 64 to 64, 64 parameters of no layer
    assert sized(net, "int4g32/fp16") == 1000 * 32 + 1000 * 2 * 4 + 2 * (64 * 32 + 64 * 2 * 4) + 4 * 64


def test_tied_weights_with_other_scales_are_two_copies():
    head, again = linear("head", "x", 64, 64), linear("again", "head", 64, 64)
    tied = Workload(
        "tied", (("x", (64,)),),
        (head, type(again)(**{**again.__dict__, "weight": head.weight})), ("again",),
    )  # fmt: skip
    mixed = {"head": Precision.parse("int4/fp16"), "again": Precision.parse("int4g32/fp16")}
    assert size_bytes(tied, Assignment.of(mixed)) == (2048 + 64 * 4) + (2048 + 64 * 2 * 4)


@pytest.mark.parametrize("target", ["tpu-v4", "a100", "mobile", "mobile-cpu", "reference"])
@given(choices=st.lists(st.sampled_from(BIT_WIDTHS), min_size=3, max_size=3), layer=st.integers(0, 2))
def test_narrowing_a_layer_never_makes_the_model_larger(target, choices, layer):
    net, profile = residual(), load_profile(target)
    wide = dict(zip(net.layer_names, choices, strict=True))
    narrow = dict(wide)
    narrow[net.layer_names[layer]] = max(4, wide[net.layer_names[layer]] // 2)

    def size(assignment):
        return size_bytes(net, legalize(net, Assignment.of(assignment), profile).executed)

    # int4/fp16 on the A100 keeps 16-bit biases but drops no scale, so 4 under 8 bits saves half the codes at least.
    assert size(narrow) <= size(wide)
