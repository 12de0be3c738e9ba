"""The roofline against arithmetic that a reader can redo, and the orderings that hardware shows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import attention, conv, linear, residual, uniform

from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import list_profiles, load_profile
from haq.hardware.schedule import schedule
from haq.precision import BIT_WIDTHS, Assignment
from haq.workload import GlueOp, Workload, elements

TARGETS = [profile.name for profile in list_profiles()]


def priced(net, target, bits, batch=1):
    profile = load_profile(target)
    asked = bits if isinstance(bits, Assignment) else uniform(net, bits)
    return estimate(net, legalize(net, asked, profile).executed, profile, batch=batch)


def test_a_compute_bound_layer_takes_its_operations_over_the_rate():
    # reference: 4 TOP/s for int8, no overheads; 64 x 576 x 4096 MACs, two operations each
    net = Workload("one", (("x", (64, 64, 64)),), (conv("c", "x", 64, 64, 64),), ("c",))
    (cost,) = priced(net, "reference", 8).layers
    assert cost.compute_ms == pytest.approx(1e3 * 2 * 64 * 576 * 4096 / 4e12)
    assert cost.bound == "compute"
    # the network's input arrives in fp32: three more bytes a value to read
    assert cost.convert_ms == pytest.approx(1e3 * 3 * 64**3 / 100e9)
    assert cost.latency_ms == pytest.approx(cost.compute_ms + cost.convert_ms)


def test_a_memory_bound_layer_takes_its_bytes_over_the_bandwidth():
    # one row by 4096 x 4096 in fp32 at 100 GB/s, input and output with it
    net = Workload("one", (("x", (4096,)),), (linear("l", "x", 4096, 4096),), ("l",))
    (cost,) = priced(net, "reference", 32).layers
    assert cost.traffic_bytes == 4 * (4096 * 4096 + 4096 + 4096)
    assert cost.memory_ms == pytest.approx(1e3 * cost.traffic_bytes / 100e9)
    assert cost.bound == "memory"


def test_a_matrix_unit_pads_what_does_not_fill_it():
    # 64 of 128 columns and 576 = 4.5 x 128 rows on the TPU: 2 x 5 / 4.5 times the work at 0.67 of 275 TFLOP/s, then
    # 64 x 4096 results at 1,075 G a second
    net = Workload("one", (("x", (64, 64, 64)),), (conv("c", "x", 64, 64, 64),), ("c",))
    (cost,) = priced(net, "tpu-v4", 16).layers
    assert cost.compute_ms == pytest.approx(1e3 * (2 * 4096 * 128 * 640 / (275e12 * 0.67) + 64 * 4096 / 1075e9))


def test_storage_only_bits_save_bytes_and_never_arithmetic():
    net = residual()
    for target in ("tpu-v3", "tpu-v4"):
        narrow, wide = priced(net, target, 4, 64), priced(net, target, 16, 64)
        assert [c.compute_ms for c in narrow.layers] == [c.compute_ms for c in wide.layers]
        assert narrow.size_bytes < wide.size_bytes
        assert narrow.traffic_bytes < wide.traffic_bytes


def test_fp32_on_the_htp_costs_exactly_fp16():
    net = residual()
    assert priced(net, "mobile", 32).figures() == priced(net, "mobile", 16).figures()


def test_int8_pays_at_large_batches_and_hardly_at_batch_one_on_the_a100():
    net = Workload("deep", (("x", (256, 14, 14)),), (conv("c", "x", 256, 256, 14),), ("c",))
    gain = {b: priced(net, "a100", 16, b).latency_ms / priced(net, "a100", 8, b).latency_ms for b in (1, 256)}
    assert gain[1] < 1.3
    assert gain[256] > 1.5


def test_tf32_is_off_unless_it_is_asked_for():
    net = Workload("deep", (("x", (256, 14, 14)),), (conv("c", "x", 256, 256, 14),), ("c",))
    plain, tf32 = (priced(net, target, 32, 64).layers[0].compute_ms for target in ("a100", "a100:tf32"))
    # the vector unit finishes 64 x 256 x 14 x 14 results in either mode
    finished = 1e3 * 64 * 256 * 14 * 14 / load_profile("a100").vector.rate.si
    assert (plain - finished) / (tf32 - finished) == pytest.approx(156 / 19.5)


def test_a_change_of_format_between_layers_is_paid_per_tensor():
    net = residual()
    mixed = Assignment.of({"a": 16, "b": 8, "c": 8})
    cost = priced(net, "a100", mixed)
    # a writes fp16; b reads it as int8, and so does the residual addition inside b's kernel
    assert [(c.source, c.consumer, str(c.from_format), str(c.to_format)) for c in cost.converts] == [
        ("a", "b", "fp16", "int8"),
        ("a", "b", "fp16", "int8"),
    ]
    assert all(c.latency_ms > 0 for c in cost.converts)
    assert priced(net, "a100", 8).converts == ()


def test_activation_and_residual_add_run_inside_their_layer_where_the_target_fuses():
    kernels = schedule(residual(), load_profile("a100"))
    assert [k.name for k in kernels] == ["a", "b", "pool", "c"]
    assert [(r.source, r.elements) for r in kernels[1].reads] == [(0, 4096), (0, 4096)]
    assert [k.name for k in schedule(residual(), load_profile("mobile-cpu"))] == ["a", "b", "add", "pool", "c"]


def test_a_tensor_that_two_ops_read_is_not_fused_away():
    shape = (64, 8, 8)
    nodes = (
        conv("a", "x", 3, 64, 8),
        GlueOp("relu", "activation", ("a",), (shape,), shape),
        GlueOp("sum", "add", ("a", "relu"), (shape, shape), shape),
    )
    net = Workload("fork", (("x", (3, 8, 8)),), nodes, ("sum",))
    assert [k.name for k in schedule(net, load_profile("mobile-cpu"))] == ["a", "relu", "sum"]


def test_a_look_up_reads_rows_and_not_the_table():
    cost = priced(attention(), "reference", 8)
    embed = next(c for c in cost.layers if c.layer == "embed")
    # 16 rows of 64 int8 read, the int8 result written, 16 indices read
    assert embed.traffic_bytes == 16 * 64 + 16 * 64 + 16
    assert embed.weight_bytes == 64_000 + 4_000


def test_peak_memory_is_the_largest_set_of_live_tensors():
    # while b runs on the reference (fp32): input of a is done, a's 4096 values and b's 4096 are live
    assert priced(residual(), "reference", 32).activation_peak_bytes == 4 * (4096 + 4096)
    assert priced(residual(), "reference", 32, 8).activation_peak_bytes == 8 * 4 * (4096 + 4096)
    assert priced(residual(), "reference", 8).activation_peak_bytes == max(4096 + 4096, 4096 + 4 * 3 * 64)


def test_energy_is_absent_where_one_figure_has_no_source():
    net = residual()
    assert priced(net, "a100", 8).energy_mj is not None
    assert "energy_mj" not in priced(net, "tpu-v4", 8).figures()
    assert "energy_mj" not in priced(net, "a100:int4_conv", 4).figures()


def test_energy_is_macs_and_off_chip_bits():
    net = Workload("one", (("x", (64,)),), (linear("l", "x", 64, 64),), ("l",))
    cost = priced(net, "a100", 16)
    # fp16 MAC 0.72 pJ; the network's input is read off-chip, its output stays in L2; 13.11 pJ a bit
    expected = (64 * 64 * 0.72 + 8 * (2 * 64 * 64 + 2 * 64) * 13.11) * 1e-12 * 1e3
    assert cost.energy_mj == pytest.approx(expected)


def test_totals_are_the_sums_of_their_parts():
    cost = priced(attention(), "a100", Assignment.of({"embed": 16, "q": 8, "k": 16, "attn/matmul_0": 8}), 4)
    parts = [c.latency_ms for c in cost.kernels] + [c.latency_ms for c in cost.converts]
    assert cost.latency_ms == pytest.approx(sum(parts) + 0.03)
    assert cost.macs == 4 * attention().macs


def test_the_json_has_the_agreed_keys():
    net = residual()
    legal = legalize(net, uniform(net, 4), load_profile("a100"))
    raw = estimate(net, legal.executed, load_profile("a100"), batch=2).to_json(legal.fallbacks, ())
    assert set(raw) == {
        "target", "batch", "latency_ms", "size_bytes", "activation_peak_bytes", "traffic_bytes", "energy_mj", "macs",
        "fallbacks", "unsupported",
    }  # fmt: skip
    assert raw["fallbacks"][0]["layer"] == "a"


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None)
@given(choices=st.lists(st.sampled_from(BIT_WIDTHS), min_size=4, max_size=4), batch=st.integers(1, 64))
def test_a_larger_batch_is_never_cheaper_and_nothing_is_free(target, choices, batch):
    net = attention()
    mixed = Assignment.of(dict(zip(net.layer_names, choices, strict=True)))
    small, large = priced(net, target, mixed, batch), priced(net, target, mixed, batch + 1)
    assert 0 < small.latency_ms <= large.latency_ms
    assert 0 < small.traffic_bytes <= large.traffic_bytes
    assert all(c.latency_ms > 0 for c in small.layers)
    assert small.size_bytes == large.size_bytes


def test_every_node_is_in_exactly_one_kernel():
    for net in (residual(), attention()):
        for target in TARGETS:
            kernels = schedule(net, load_profile(target))
            heads = [k.head.name for k in kernels if k.head]
            assert heads == list(net.layer_names)
            assert kernels[-1].writes == elements(net.nodes[-1].output_shape)
