"""Explanations: the time at every bit-width, parts that add up, reasons that layers share, and how it is printed."""

import json

import pytest
from machines import GB_S, chain, explained, machine, priced
from nets import attention, conv, linear, residual

from haq.cli import main
from haq.cli.explained import shortened
from haq.explain import causes, explain, parts
from haq.hardware.profile import list_profiles, load_profile
from haq.precision import Assignment
from haq.pricing import price
from haq.scaling import Scaling
from haq.workload import Workload


def test_a_bit_width_costs_the_kernel_there_and_the_conversions_at_its_edges():
    layer = explained(chain(), load_profile("reference"), 32)["b"]
    at = {width.bits: width for width in layer.widths}
    # Arithmetic hides the traffic. 4096 values come in as fp32, three bytes more each than int8; what goes out is read
    # by c in the narrower int8, which costs nothing more.
    expected_s = 2 * 64 * 576 * 64 / 4e12 + 3 * 4096 / GB_S
    assert at[8].placed.latency_ms == pytest.approx(1e3 * expected_s)
    assert [str(at[bits].executed) for bits in (4, 8, 16, 32)] == ["int4/int8", "int8/int8", "fp16/fp16", "fp32/fp32"]
    assert at[32].placed.latency_ms == layer.latency_ms


@pytest.mark.parametrize("target", [profile.name for profile in list_profiles()])
@pytest.mark.parametrize("net", [residual(), attention()], ids=lambda net: net.name)
def test_what_a_width_would_change_is_what_the_whole_changes_by_but_for_glue(net, target):
    profile, bits = load_profile(target), dict(zip(net.layer_names, (8, 16, 4, 16), strict=False))
    found = explained(net, profile, Assignment.of(bits))
    for name in net.layer_names:
        for width in found[name].widths:
            there = priced(net, profile, Assignment.of({**bits, name: width.bits})).cost
            here = priced(net, profile, Assignment.of(bits)).cost
            moved = sum(c.latency_ms for c in there.glue) - sum(c.latency_ms for c in here.glue)
            now = next(w for w in found[name].widths if w.executed == found[name].executed)
            change = width.placed.latency_ms - now.placed.latency_ms
            assert there.latency_ms - here.latency_ms - moved == pytest.approx(change, abs=1e-12)


def test_what_a_width_would_run_has_the_scales_that_were_asked_for():
    net, fine = Workload("one", (("x", (256,)),), (linear("l", "x", 256, 64),), ("l",)), Scaling(64, per_token=True)
    for target, expected in (
        ("reference", ["int4g64/int8t", "int8/int8t", "fp16/fp16", "fp32/fp32"]),
        ("mobile-cpu", ["int4/int8", "int8/int8", "fp16/fp16", "fp32/fp32"]),
    ):
        (layer,) = explain(price(net, target, 4, batch=1, scaling=fine))
        assert [str(width.executed) for width in layer.widths] == expected
    assert any(
        reason.startswith("4 bits run as int4/int8: for linear mobile-cpu has one scale") for reason in layer.why
    )


def test_the_parts_are_everything_and_add_up():
    net = residual()
    found = priced(net, load_profile("a100"), Assignment.of({"a": 16, "b": 8, "c": 8}))
    rows = parts(found, explain(found))
    assert {row["kind"] for row in rows} == {"layer", "glue", "convert", "inference"}
    assert sum(row["latency_ms"] for row in rows) == pytest.approx(found.cost.latency_ms)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    row = next(row for row in rows if row["name"] == "b")
    assert set(row["at_bits"]) == {"4", "8", "16", "32"}
    assert row["at_bits"]["4"] == row["at_bits"]["8"]  # a convolution's 4 bits run as int8


def test_layers_that_share_a_reason_share_a_line_and_their_times_add_up():
    found = explain(priced(chain(), machine(kernel_us=3), 8))
    overhead = next(cause for cause in causes(found) if cause.head == "overhead-bound at batch 1")
    assert set(overhead.layers) == {"a", "b", "c"}
    assert overhead.part_ms == pytest.approx(3 * 0.003)
    assert overhead.text.startswith("9.0 of ")


def test_reasons_that_differ_in_numbers_only_share_a_line_with_the_first_as_example():
    nodes = (conv("a", "x", 64, 48, 64), conv("b", "a", 48, 32, 64))
    net = Workload("pads", (("x", (64, 64, 64)),), nodes, ("b",))
    found = next(c for c in causes(explain(priced(net, machine(tile=(1, 64, 1)), 8))) if c.head == "padded columns")
    assert found.layers == ("b", "a")  # half of b's work is lost, a quarter of a's
    assert found.text.endswith("b is padded 32 -> 64 columns, 50 % of the work wasted")


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        ("layer1.0.conv1", 20, "layer1.0.conv1"),
        ("bert.encoder.layer.10.attention.output.dense", 33, "...10.attention.output.dense"),
        ("layer1.0.conv1 -> layer1.0.conv2", 40, "layer1.0.conv1 -> conv2"),
        ("a" * 30, 20, "..." + "a" * 17),
    ],
)
def test_a_long_name_keeps_its_end(name, width, shown):
    assert shortened(name, width) == shown


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of traces for this file alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def run(capsys, *arguments):
    assert main(["estimate", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command_prints_every_width_marks_what_runs_and_groups_the_reasons(capsys):
    out = run(capsys, "-s", "resnet18", "-t", "tpu-v4", "--bits", "8", "--explain")
    assert "storage only on tpu-v4 (21 layers: " in out
    assert "4 and 8 bits are multiplied as bf16" in out
    head = next(line for line in out.splitlines() if "bound by" in line)
    assert head.split() == ["part", "bound", "by", "us", "share", "MB", "4", "8", "16", "32"]
    conv1 = next(line for line in out.splitlines() if line.lstrip().startswith("conv1 "))
    assert conv1.count("*") == 1
    table = out[out.index("slowest ") : out.index("why fewer bits")]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 100


def test_the_command_gives_all_layers_and_reasons_as_json(capsys):
    found = json.loads(run(capsys, "-s", "resnet18", "-t", "a100", "--bits", "4", "--explain", "--json"))
    layers = [part for part in found["parts"] if part["kind"] == "layer"]
    assert len(layers) == 21
    assert all(set(part["at_bits"]) == {"4", "8", "16", "32"} for part in layers)
    fallbacks = {f["layer"] for f in found["fallbacks"]}
    said = {part["name"] for part in layers if any("4 bits run as int8/int8" in reason for reason in part["why"])}
    assert fallbacks == said


def test_a_latency_is_printed_with_its_error(capsys):
    out = run(capsys, "-s", "resnet18", "-t", "tpu-v4", "--bits", "8")
    found = json.loads(run(capsys, "-s", "resnet18", "-t", "tpu-v4", "--bits", "8", "--json"))
    spread = load_profile("tpu-v4").latency_spread.value
    assert found["latency_spread"] == spread
    assert f"latency modelled: {found['latency_ms']:.4g} ms, +-{100 * spread:.0f} % ({found['confidence']})" in out
