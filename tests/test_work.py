"""What kernels and changes of format have to do, against arithmetic that a reader can redo."""

import pytest
from nets import conv, linear, product, relu, residual, uniform

from haq.hardware.cost import estimate, plan
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.schedule import schedule
from haq.hardware.schema import HardwareProfile
from haq.hardware.work import kernel_work, own_converts
from haq.precision import Assignment, Precision
from haq.workload import GlueOp, Workload

TOKEN = Precision.parse("int8/int8t")
INT8, FP16, FP32 = (Precision.parse(name) for name in ("int8", "fp16", "fp32"))


def figure(value, unit):
    return {"value": value, "unit": unit, "source": "a figure of this test", "status": "documented"}


def changed(target, **changes):
    """A shipped profile with some of its tables' keys set: memory={...} updates the table `memory`."""
    raw = load_profile(target).model_dump()
    for table, keys in changes.items():
        raw[table] = {**(raw[table] or {}), **keys}
    return HardwareProfile.model_validate(raw)


def works(net, profile, precision, batch=1):
    kernels, setting = plan(net, profile, batch)
    return {kernel.name: kernel_work(kernel, precision, setting) for kernel in kernels}


def priced(net, profile, bits, batch=1):
    asked = bits if isinstance(bits, Assignment) else uniform(net, bits)
    return estimate(net, legalize(net, asked, profile).executed, profile, batch=batch)


def attention(tokens=128, heads=12, width=64):
    shape = (heads, tokens, tokens)
    nodes = (
        linear("q", "x", 768, 768, tokens),
        linear("k", "x", 768, 768, tokens),
        linear("v", "x", 768, 768, tokens),
        product("attn/matmul_0", "q", "k", tokens, tokens, width, heads),
        GlueOp("softmax", "softmax", ("attn/matmul_0",), (shape,), shape),
        product("attn/matmul_1", "softmax", "v", tokens, width, tokens, heads),
    )
    return Workload("attention", (("x", (tokens, 768)),), nodes, ("attn/matmul_1",))


def test_a_product_takes_whole_waves_of_blocks() -> None:
    # 128 rows by 3,072 columns in blocks of 64 x 64: 2 x 48 = 96 blocks, one wave of 108 units; 768 deep
    net = Workload("one", (("x", (128, 768)),), (linear("l", "x", 768, 3072, 128),), ("l",))
    a100 = load_profile("a100")
    assert works(net, a100, FP16)["l"].operations == 2 * 108 * 64 * 64 * 768
    # twice the batch: 192 blocks, two waves
    assert works(net, a100, FP16, 2)["l"].operations == 2 * 216 * 64 * 64 * 768


def test_a_fused_attention_keeps_its_scores_and_gives_each_head_to_one_unit() -> None:
    found = works(attention(), load_profile("a100"), FP16)
    first, second = found["attn/matmul_0"], found["attn/matmul_1"]
    # 12 heads wait for a wave of 108 units
    assert first.operations == second.operations == 2 * 108 * 128 * 128 * 64
    # scores are fp32, written and read twice in each half, and the idle units count
    assert first.score_bytes == second.score_bytes == 2 * 4 * 12 * 128 * 128 * 108 / 12
    assert (first.launches, second.launches) == (1, 0)
    # q and k in, nothing out; v in, the result out: all of it fits into the L2
    assert first.on_chip_bytes == 2 * 2 * 128 * 768
    assert second.on_chip_bytes == 2 * 2 * 128 * 768
    assert first.dram_bytes == second.dram_bytes == 0


def test_products_of_different_formats_break_a_fused_attention_and_pay_for_the_scores() -> None:
    net, a100 = attention(), load_profile("a100")
    mixed = Assignment.of({**uniform(net, 16), "attn/matmul_1": 8})
    broken = [c for c in priced(net, a100, mixed).converts if c.breaks == "attention"]
    assert [(c.source, c.consumer) for c in broken] == [("attn/matmul_0", "attn/matmul_1")]
    # scores written and read in fp16, then converted: read in fp16, written in int8; two more launches
    moved = 12 * 128 * 128 * (2 + 2 + 2 + 1)
    launches = a100.overhead.kernel["attention"].si + a100.overhead.kernel["convert"].si
    assert broken[0].latency_ms == pytest.approx(1e3 * (launches + moved / a100.on_chip.bandwidth.si))
    assert not [c for c in priced(net, a100, 16).converts if c.breaks]


def test_a_residual_of_another_format_breaks_the_fused_addition() -> None:
    net, a100 = residual(), load_profile("a100")
    cost = priced(net, a100, Assignment.of({"a": 16, "b": 8, "c": 8}))
    assert [c.breaks for c in cost.converts] == ["", "addition"]
    plain, broken = cost.converts
    # the addition alone: b's int8 result written and read once more, beside a's in its format
    more = a100.overhead.kernel["glue"].si + 2 * 4096 / a100.on_chip.bandwidth.si
    assert broken.latency_ms != plain.latency_ms
    assert broken.latency_ms == pytest.approx(1e3 * more)


def test_fusing_compilers_break_nothing() -> None:
    cost = priced(residual(), load_profile("tpu-v4"), Assignment.of({"a": 32, "b": 16, "c": 16}))
    assert [c.breaks for c in cost.converts] == ["", ""]


def dense():
    """x -> a -> b on [a] -> concatenation of a and b -> c: a is read twice, b once."""
    shape = (32, 8, 8)
    nodes = (
        conv("a", "x", 3, 32, 8),
        conv("b", "a", 32, 32, 8),
        GlueOp("cat", "reshape", ("a", "b"), (shape, shape), (64, 8, 8)),
        conv("c", "cat", 64, 32, 8),
    )
    return Workload("dense", (("x", (3, 8, 8)),), nodes, ("c",))


def test_an_integer_operand_of_a_concatenation_is_rescaled_only_where_others_read_it_too() -> None:
    net, mobile = dense(), load_profile("mobile")
    kernels, setting = plan(net, mobile, 1)
    cat = next(k for k in kernels if k.name == "cat")
    assert [(r.rescaled, r.in_place) for r in cat.reads] == [(True, False), (False, True)]
    (rescale,) = own_converts(cat, INT8, setting)
    assert (rescale.launches, rescale.on_chip_bytes) == (1, 2 * 32 * 64)
    assert list(own_converts(cat, FP16, setting)) == []


def test_a_concatenation_whose_operands_are_in_place_costs_nothing() -> None:
    shape = (32, 8, 8)
    nodes = (
        conv("a", "x", 3, 32, 8),
        conv("b", "x", 3, 32, 8),
        GlueOp("cat", "reshape", ("a", "b"), (shape, shape), (64, 8, 8)),
    )
    net = Workload("inception", (("x", (3, 8, 8)),), nodes, ("cat",))
    found = works(net, load_profile("a100"), FP16)["cat"]
    assert (found.launches, found.on_chip_bytes, found.dram_bytes, found.finished) == (0, 0, 0, 0)
    copied = works(net, load_profile("mobile-cpu"), FP32)["cat"]
    assert (copied.launches, copied.dram_bytes) == (1, 4 * 2 * 64 * 64)


def test_only_clamping_activations_are_free_on_the_htp() -> None:
    shape = (32, 8, 8)
    nodes = (conv("a", "x", 3, 32, 8), GlueOp("silu", "smooth", ("a",), (shape,), shape))
    net = Workload("swish", (("x", (3, 8, 8)),), nodes, ("silu",))
    assert [k.name for k in schedule(net, load_profile("mobile"))] == ["a", "silu"]
    assert [k.name for k in schedule(net, load_profile("a100"))] == ["a"]
    clamped = Workload("relu", net.inputs, (nodes[0], relu("r", "a", shape)), ("r",))
    assert [k.name for k in schedule(clamped, load_profile("mobile"))] == ["a"]


def test_an_input_costs_a_float_network_more_where_the_runtime_takes_integers_as_they_are() -> None:
    net = Workload("one", (("x", (3, 8, 8)),), (conv("a", "x", 3, 32, 8),), ("a",))
    mobile = load_profile("mobile")
    floats, integers = (priced(net, mobile, bits).layers[0] for bits in (16, 8))
    kernel = 1e3 * mobile.overhead.kernel["conv"].si
    assert floats.overhead_ms == pytest.approx(kernel + 1e3 * mobile.overhead.float_input.si)
    assert (integers.overhead_ms, integers.convert_ms) == (pytest.approx(kernel), 0)
    assert floats.convert_ms > 0


def test_activations_that_fit_stay_on_the_chip_and_streamed_ones_always_do() -> None:
    # 64 x 256 x 256 values of fp16 are 8.4 MB: under half of the A100's 40 MiB, over half of the HTP's 8 MiB
    net = Workload("big", (("x", (3, 256, 256)),), (conv("a", "x", 3, 64, 256), conv("b", "a", 64, 64, 256)), ("b",))
    size = 2 * 64 * 256 * 256
    weights = 2 * 64 * 64 * 9
    found = works(net, load_profile("a100"), FP16)["b"]
    assert (found.on_chip_bytes, found.dram_bytes) == (2 * size, weights)
    assert works(net, load_profile("mobile"), FP16)["b"].dram_bytes == weights
    spilled = changed("mobile", on_chip={"streams": False})
    assert works(net, spilled, FP16)["b"].dram_bytes == weights + 2 * size


def test_weights_that_fit_beside_the_activations_stay_between_batches_where_the_target_keeps_them() -> None:
    net = Workload("one", (("x", (512,)),), (linear("l", "x", 512, 512),), ("l",))
    # 1 MiB of weights in fp32 and 4 KB of activations, a quarter of it in int8
    keeps = changed("a100", on_chip={"keeps_weights": True, "capacity": figure(0.5, "MiB")})
    assert works(net, keeps, FP32)["l"].dram_bytes == 4 * (512 + 512 * 512)  # input and weight
    kept = works(net, keeps, INT8)["l"]
    assert kept.dram_bytes == 512  # the network's input only
    assert kept.on_chip_bytes == 512 * 512 + 4 * 512 + 512  # codes, scales, result


def test_what_does_not_overlap_is_exposed() -> None:
    net = Workload("one", (("x", (4096,)),), (linear("l", "x", 4096, 4096),), ("l",))
    half = changed("reference", memory={"overlap": figure(0.5, "fraction")})
    (cost,) = priced(net, half, 32).layers
    compute, memory = 2 * 4096**2 / 1e12, 4 * (4096**2 + 2 * 4096) / 100e9
    assert cost.latency_ms == pytest.approx(1e3 * (memory + 0.5 * compute))


def test_a_class_may_reach_another_share_of_peak_in_one_arithmetic() -> None:
    net = Workload("one", (("x", (64, 64, 64)),), (conv("c", "x", 64, 64, 64),), ("c",))
    own = changed("reference", efficiency={"conv/int8": figure(0.25, "fraction")})
    int8, fp16 = (priced(net, own, bits).layers[0].compute_ms for bits in (8, 16))
    assert int8 == pytest.approx(1e3 * 2 * 64 * 576 * 4096 / (4e12 * 0.25))
    assert fp16 == pytest.approx(1e3 * 2 * 64 * 576 * 4096 / 2e12)


def test_the_vector_unit_finishes_results_whatever_their_format() -> None:
    net = Workload("one", (("x", (64, 64, 64)),), (conv("c", "x", 64, 64, 64),), ("c",))
    profile = changed("reference", vector={"rate": figure(1, "GOP/s")})
    without, with_it = priced(net, load_profile("reference"), 8), priced(net, profile, 8)
    assert with_it.layers[0].compute_ms - without.layers[0].compute_ms == pytest.approx(1e3 * 64**3 / 1e9)


def feed_forward(tokens=128):
    nodes = (linear("up", "x", 768, 3072, tokens), linear("down", "up", 3072, 768, tokens))
    return Workload("feed forward", (("x", (tokens, 768)),), nodes, ("down",))


def converts(net, profile, precision, batch=1):
    kernels, setting = plan(net, profile, batch)
    return {kernel.name: list(own_converts(kernel, precision, setting)) for kernel in kernels}


def test_a_scale_per_token_takes_one_more_pass_over_what_the_layer_reads() -> None:
    net, reference = feed_forward(), load_profile("reference")
    static, dynamic = converts(net, reference, INT8, 2), converts(net, reference, TOKEN, 2)
    # before they are rounded, 128 rows of 3,072 in fp32 for each of two samples; the consumer does it itself
    assert static["down"] == []
    (looked,) = dynamic["down"]
    assert (looked.dram_bytes, looked.launches) == (2 * 4 * 128 * 3072, 0)
    # the network's input is also rounded, as it is with a static scale
    assert dynamic["up"][:-1] == static["up"]
    assert dynamic["up"][-1].dram_bytes == 2 * 4 * 128 * 768


def test_where_kernels_convert_the_pass_is_one_that_writes_a_scale_per_row() -> None:
    device = changed("reference", fusion={"convert": "kernel"})
    (looked,) = converts(feed_forward(), device, TOKEN)["down"]
    assert (looked.op_class, looked.launches) == ("convert", 1)
    assert looked.dram_bytes == 4 * 128 * 3072 + 4 * 128


def test_a_scale_per_token_changes_nothing_else_that_a_kernel_does() -> None:
    net, reference = feed_forward(), load_profile("reference")
    assert works(net, reference, TOKEN) == works(net, reference, INT8)
    static, dynamic = (priced(net, reference, Assignment.uniform(net.layer_names, p)) for p in (INT8, TOKEN))
    assert dynamic.traffic_bytes - static.traffic_bytes == 4 * 128 * (768 + 3072)
    assert dynamic.latency_ms - static.latency_ms == pytest.approx(1e3 * 4 * 128 * (768 + 3072) / 100e9)
    assert dynamic.activation_peak_bytes == static.activation_peak_bytes


def test_groups_multiply_as_int4_and_move_their_scales() -> None:
    net, a100 = feed_forward(), load_profile("a100")
    plain, grouped = (works(net, a100, Precision.parse(f"{weight}/fp16")) for weight in ("int4", "int4g64"))
    for name, channels, groups in (("up", 3072, 12), ("down", 768, 48)):
        assert grouped[name].arithmetic == plain[name].arithmetic == "fp16"
        assert grouped[name].operations == plain[name].operations
        assert grouped[name].dram_bytes - plain[name].dram_bytes == channels * (groups - 1) * 4
