"""The workload graph: what it counts, and its JSON."""

from haq.workload import Gemm, GlueOp, LayerSpec, Unsupported, WeightSpec, Workload

CONV = LayerSpec(
    "conv", "conv2d", ("x",), ((3, 8, 8),), (16, 8, 8), 16 * 27 * 64, Gemm(64, 16, 27, 1),
    WeightSpec("conv.weight", (16, 3, 3, 3), 0), 16,
)  # fmt: skip
AGAIN = LayerSpec(
    "head@1", "linear", ("pool",), ((16,),), (10,), 160, Gemm(1, 10, 16, 1), WeightSpec("head.weight", (10, 16), 0), 10
)
HEAD = LayerSpec(
    "head", "linear", ("pool",), ((16,),), (10,), 160, Gemm(1, 10, 16, 1), WeightSpec("head.weight", (10, 16), 0), 10
)
POOL = GlueOp("pool", "pool", ("conv",), ((16, 8, 8),), (16,))
NET = Workload(
    "net", (("x", (3, 8, 8)),), (CONV, POOL, HEAD, AGAIN), ("head", "head@1"), 7, (Unsupported("aten.lstm", "rnn"),)
)


def test_tied_weights_and_repeated_calls_count_once():
    assert NET.parameters == 16 * 27 + 16 + 10 * 16 + 10 + 7


def test_macs_count_every_call():
    assert NET.macs == 16 * 27 * 64 + 160 + 160


def test_consumers_follow_the_graph():
    assert NET.consumers == {"x": ("conv",), "conv": ("pool",), "pool": ("head", "head@1"), "head": (), "head@1": ()}


def test_a_call_number_is_not_part_of_the_module():
    assert AGAIN.module == "head"


def test_only_one_filter_per_input_channel_is_depthwise():
    weight = WeightSpec("d.weight", (32, 1, 3, 3), 0)
    depthwise = LayerSpec("d", "conv2d", ("x",), ((16, 8, 8),), (32, 8, 8), 1, None, weight, groups=16)
    grouped = LayerSpec("g", "conv2d", ("x",), ((32, 8, 8),), (32, 8, 8), 1, None, weight, groups=16)
    assert depthwise.is_depthwise
    assert not grouped.is_depthwise
    assert not CONV.is_depthwise


def test_a_workload_survives_json():
    assert Workload.from_json(NET.to_json()) == NET
