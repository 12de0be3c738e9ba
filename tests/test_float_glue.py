"""Glue that an integer runtime runs in floats, and glue that ends a convolution's kernel in floats only."""

from nets import conv, linear, relu

from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.schedule import schedule
from haq.hardware.work import Setting, kernel_work, own_converts
from haq.precision import FP32, Assignment, Precision
from haq.workload import GlueOp, Workload

INT8 = Precision.parse("int8")
SIZE = 8 * 16 * 16


def machine(**fusion):
    """The reference machine, whose activations stay on no chip, with changes to what it merges."""
    profile = load_profile("reference")
    changed = profile.fusion.model_copy(
        update={"layer": ("activation",), "glue": (), "convert": "kernel", "float_glue": (), "float_conv": (), **fusion}
    )
    return profile.model_copy(update={"fusion": changed})


def curve():
    """conv a -> hard swish -> conv b."""
    shape = (8, 16, 16)
    nodes = (
        conv("a", "x", 8, 8, 16),
        GlueOp("swish", "smooth", ("a",), (shape,), shape),
        conv("b", "swish", 8, 8, 16),
    )
    return Workload("curve", (("x", shape),), nodes, ("b",))


def test_between_integer_layers_float_glue_dequantizes_moves_floats_and_quantizes():
    profile = machine(float_glue=("smooth",))
    setting = Setting(profile, 1)
    swish = schedule(curve(), profile)[1]
    assert (swish.kind, swish.beside, swish.runs_in_floats) == ("smooth", "conv2d", True)
    assert kernel_work(swish, INT8, setting).dram_bytes == 2 * 4 * SIZE
    assert [work.dram_bytes for work in own_converts(swish, INT8, setting)] == [5 * SIZE, 5 * SIZE]
    assert list(own_converts(swish, FP32, setting)) == []
    assert kernel_work(schedule(curve(), machine())[1], INT8, setting).dram_bytes == 2 * SIZE


def test_what_float_glue_wrote_needs_no_change_for_a_float_reader():
    net = curve()
    mixed = Assignment.of({"a": 8, "b": 32})
    profile = machine(float_glue=("smooth",))
    cost = estimate(net, legalize(net, mixed, profile).executed, profile, batch=1)
    assert [c.latency_ms for c in cost.converts] == [0.0]
    plain = estimate(net, legalize(net, mixed, machine()).executed, machine(), batch=1)
    assert [c.latency_ms for c in plain.converts] != [0.0]


def test_a_convolution_in_floats_computes_the_glue_along_and_one_in_integers_does_not():
    profile = machine(float_conv=("smooth", "add"))
    setting = Setting(profile, 1)
    swish = schedule(curve(), profile)[1]
    assert swish.float_host == 0
    assert (kernel_work(swish, FP32, setting).launches, kernel_work(swish, FP32, setting).dram_bytes) == (0, 0)
    assert (kernel_work(swish, INT8, setting).launches, kernel_work(swish, INT8, setting).dram_bytes) == (1, 2 * SIZE)


def test_the_other_operand_of_an_addition_is_read_by_the_convolution_that_adds_it():
    shape = (8, 16, 16)
    nodes = (
        conv("a", "x", 8, 8, 16),
        relu("relu", "a", shape),
        conv("b", "relu", 8, 8, 16),
        GlueOp("add", "add", ("b", "relu"), (shape, shape), shape),
    )
    net = Workload("residual", (("x", shape),), nodes, ("add",))
    profile = machine(float_conv=("add",))
    add = schedule(net, profile)[2]
    assert kernel_work(add, FP32, Setting(profile, 1)).dram_bytes == 4 * SIZE
    assert kernel_work(add, INT8, Setting(profile, 1)).dram_bytes == 3 * SIZE


def test_glue_after_a_linear_layer_or_beside_another_reader_stays_a_kernel():
    rows = (16, 64)
    gelu = GlueOp("gelu", "smooth", ("l",), (rows,), rows)
    net = Workload("rows", (("x", rows),), (linear("l", "x", 64, 64, 16), gelu), ("gelu",))
    profile = machine(float_conv=("smooth",))
    assert schedule(net, profile)[1].float_host is None
    forked = Workload("fork", curve().inputs, curve().nodes, ("a", "b"))
    assert schedule(forked, profile)[1].float_host is None
