"""not-executed and no-speedup: on the shipped profiles by arithmetic that a reader can redo, and by brute force."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import GB_S, chain, machine
from nets import attention, conv, linear, residual

from haq.accuracy import Interval
from haq.diagnose import no_speedup, not_executed
from haq.diagnose.costs import cost_evidence
from haq.diagnose.no_speedup import islands
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.size import size_bytes
from haq.hardware.table import cost_table
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.spacefile import load_space
from haq.tracecache import workload_of
from haq.workload import Workload


def costs_of(net, target, bits, **more):
    """What `haq search` would have written of these bits on the target, priced there."""
    profile = load_profile(target) if isinstance(target, str) else target
    bits = bits if isinstance(bits, dict) else dict.fromkeys(net.layer_names, bits)
    legal = legalize(net, Assignment.of(bits), profile)
    config = {"target": {"name": profile.name, "batch": 1}, "layers": legal.executed.to_json(), "requested_bits": bits}
    return cost_evidence({**config, **more}, net, profile)


def formats(net, target, layers, own=None):
    """A config of these formats, made for the target `own`, on another one."""
    config = {"target": {"name": own or target, "batch": 1}, "layers": layers}
    return cost_evidence(config, net, load_profile(target))


def test_an_int4_convolution_runs_as_int8_on_the_a100_and_takes_twice_the_bytes():
    net = chain()
    found = list(not_executed.detect(costs_of(net, "a100", 4)))
    assert [f.layer for f in found] == ["a", "b", "c"]
    # 64 x 64 x 3 x 3 weights of one byte and not of half a one; scales are as many.
    assert [f.effect.size_bytes for f in found] == [64 * 64 * 9 // 2] * 3
    assert (found[0].mode, found[0].statistic, found[0].value) == ("not-executed", "bits_wider", 4)
    assert "no library has int4 kernels" in found[0].text
    assert "ask for int8/int8 (8 bits), which runs anyway" in found[0].text


def without_int4_kernels():
    """The A100 with its int4 rate but no kernel that reaches it, and the one that has the kernels too."""
    there = load_profile("a100:int4_conv")
    rows = tuple(row for row in there.executes if row.precisions != ("int4/int4",))
    return there.model_copy(update={"executes": rows}), there


@pytest.mark.parametrize("net", [chain(), residual()], ids=lambda net: net.name)
def test_what_all_fallbacks_cost_together_is_what_a_device_with_the_kernels_would_save(net):
    profile, there = without_int4_kernels()
    costs = costs_of(net, profile, 4)
    gaps = list(costs.gaps())
    assert len(gaps) == 3
    as_asked = legalize(net, Assignment.uniform(net.layer_names, 4), there)
    assert not as_asked.fallbacks
    as_asked_ms = estimate(net, as_asked.executed, there, batch=1).latency_ms
    assert costs.as_asked_ms(gaps).sum() == pytest.approx(costs.now.latency_ms - as_asked_ms, abs=1e-12)


def test_one_fallback_costs_what_that_layer_alone_would_save():
    profile, there = without_int4_kernels()
    net = chain()
    costs = costs_of(net, profile, {"a": 8, "b": 4, "c": 8})
    mixed = Assignment.of({**costs.executed, "b": Precision.parse("int4/int4")})
    alone_ms = costs.now.latency_ms - estimate(net, mixed, there, batch=1).latency_ms
    assert costs.as_asked_ms(list(costs.gaps())) == pytest.approx([alone_ms])


def test_a_rate_that_nobody_publishes_is_not_made_up():
    # The A100's profile has no rate for int4: as asked, the layers would save bytes and, overhead-bound, no time.
    costs = costs_of(chain(), "a100", 4)
    assert "int4" not in costs.profile.arithmetic
    assert (abs(costs.as_asked_ms(list(costs.gaps()))) < 1e-5 * costs.now.latency_ms).all()


def test_a_tpu_stores_int4_as_it_was_asked_to_and_that_is_no_finding():
    costs = costs_of(chain(), "tpu-v4", 4)
    assert costs.executed["a"] == Precision.parse("int4/bf16")
    assert not list(not_executed.detect(costs))
    assert not list(no_speedup.detect(costs))


def test_formats_of_another_target_run_wider_on_a_tpu_which_has_no_integer_arithmetic():
    net = chain()
    costs = formats(net, "tpu-v4", dict.fromkeys(net.layer_names, "int8/int8"), own="a100")
    assert [(gap.bits_wider, str(gap.executed)) for gap in costs.gaps()] == [(8, "int8/bf16")] * 3
    for suspicion in not_executed.detect(costs):
        assert suspicion.effect is None or suspicion.effect.latency_ms >= 0.01 * costs.now.latency_ms
    # What the other target runs as listed is no gap, whatever bits it was searched with.
    assert not list(formats(net, "a100", dict.fromkeys(net.layer_names, "int8/int8"), own="mobile").gaps())


def test_fp32_runs_narrower_on_the_htp_which_is_listed_once_and_without_effect():
    (found,) = not_executed.detect(costs_of(chain(), "mobile", 32))
    assert found.effect is None
    assert found.layers == ("a", "b", "c")
    assert found.value == -16
    assert "the narrower fp16/fp16 (the HTP runs fp32 graphs as fp16)" in found.text


def test_a_layer_that_is_not_narrower_than_asked_is_no_gap_whatever_its_bits_once_were():
    # A config whose layer was raised later: its formats count, not the bits that the search had asked for.
    net, raw = chain(), {"a": 4, "b": 4, "c": 4}
    config = {"target": {"name": "a100", "batch": 1}, "layers": dict.fromkeys(raw, "fp16/fp16"), "requested_bits": raw}
    assert not list(cost_evidence(config, net, load_profile("a100")).gaps())


def test_storage_is_a_finding_where_the_config_promised_time_that_it_does_not_save():
    net = Workload("one", (("x", (1024,)),), (linear("l", "x", 1024, 1024),), ("l",))
    slow = load_profile("tpu-v4")
    # The weight's bytes are the only thing that int8 storage saves; where memory is free, it saves nothing.
    memory = slow.memory.model_copy(
        update={"bandwidth": slow.memory.bandwidth.model_copy(update={"value": 1e12}), "overlap": None}
    )
    profile = slow.model_copy(update={"memory": memory, "on_chip": None})
    costs = costs_of(net, profile, 8)
    assert not list(not_executed.detect(costs))
    kept = replace(costs, promised_ms=costs.now.latency_ms)
    assert not list(not_executed.detect(kept))
    (found,) = not_executed.detect(replace(costs, promised_ms=0.9 * costs.now.latency_ms))
    assert found.statistic == "storage_cost"
    wide = Assignment.of({"l": Precision.parse("bf16/bf16")})
    assert found.effect.size_bytes == size_bytes(net, costs.executed) - size_bytes(net, wide) < 0


def test_what_verify_read_wider_from_the_artifact_costs_what_the_wider_format_costs():
    net = chain()
    costs = costs_of(net, "a100", 8)
    read = {"a": Precision.parse("int8/int8"), "b": Precision.parse("fp32/fp32"), "c": None}
    (found,) = not_executed.detect(replace(costs, read_back=read))
    there = Assignment.of({**costs.executed, "b": read["b"]})
    assert found.layer == "b"
    assert found.value == 24
    expected_ms = estimate(net, there, costs.profile, batch=1).latency_ms - costs.now.latency_ms
    assert found.effect.latency_ms == pytest.approx(expected_ms)
    assert found.effect.size_bytes == size_bytes(net, there) - costs.now.size_bytes > 0


def test_an_int8_layer_between_fp16_ones_costs_its_converts_and_saves_its_kernel():
    net = chain()
    # Kernels that cost 5 us each, conversions among them; both neighbours of b work in fp16.
    costs = costs_of(net, machine(kernel_us=5.0, convert="kernel"), {"a": 16, "b": 8, "c": 16})
    # The other one is a, to which the network's fp32 input has to be converted.
    found, other = no_speedup.detect(costs)
    assert other.layers == ("a",)
    operations = 2 * 64 * 576 * 64
    converts_s = 2 * (5e-6 + 4096 * (2 + 1) / GB_S)
    saved_ms = 1e3 * (converts_s - (operations / 2e12 - operations / 4e12))
    assert found.layer == "b"
    assert found.layers == ("b",)
    assert found.effect.latency_ms == pytest.approx(saved_ms, rel=1e-6)
    assert found.value == pytest.approx(saved_ms / costs.now.latency_ms)
    assert found.effect.size_bytes == costs.now.size_bytes - size_bytes(
        net, Assignment.of({**costs.executed, "b": Precision.parse("fp16/fp16")})
    )
    assert "its changes of format take" in found.text
    assert "narrowing a, c as well would save" in found.text


def test_an_island_is_widened_as_a_whole_where_its_layers_alone_would_only_move_its_edges():
    nodes = tuple(conv(name, source, 64, 64, 8) for name, source in zip("abcd", "xabc", strict=True))
    net = Workload("chain", (("x", (64, 8, 8)),), nodes, ("d",))
    costs = costs_of(net, machine(kernel_us=5.0, convert="kernel"), {"a": 16, "b": 8, "c": 8, "d": 16})
    assert islands(costs) == (("a",), ("b", "c"), ("d",))
    found, other = no_speedup.detect(costs)
    assert (found.layers, other.layers) == (("b", "c"), ("a",))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_single_layer_that_is_faster_wider_goes_unnamed_and_every_effect_is_the_estimates(data):
    net = data.draw(st.sampled_from([chain(), residual(), attention()]))
    target = data.draw(st.sampled_from(["a100", "mobile", "tpu-v4", "mobile-cpu", "t4"]))
    bits = {name: data.draw(st.sampled_from(BIT_WIDTHS)) for name in net.layer_names}
    costs = costs_of(net, target, bits)
    total_ms = estimate(net, costs.executed, costs.profile, batch=1).latency_ms
    found = list(no_speedup.detect(costs))
    named = {name for suspicion in found for name in suspicion.layers}
    for name in net.layer_names:
        now = costs.executed.precision(name)
        for wider in legalized(net, name, costs.profile):
            if width(wider) > width(now) and wider.activation != now.activation and name not in named:
                there = Assignment.of({**costs.executed, name: wider})
                saved_ms = total_ms - estimate(net, there, costs.profile, batch=1).latency_ms
                # An island may stand for its layers, and widened without this one.
                near = any(name in island and named & set(island) for island in islands(costs))
                assert saved_ms < 0.0101 * total_ms or near
    for suspicion in found:
        assert suspicion.effect.latency_ms >= 0.01 * total_ms
        spread = costs.profile.latency_spread
        low = suspicion.effect.latency_ms * (1 - spread.si)
        assert isinstance(suspicion.effect.latency_interval, Interval)
        assert suspicion.effect.latency_interval.low == pytest.approx(low)


def legalized(net, layer, profile):
    """What each bit-width runs as."""
    for bits in BIT_WIDTHS:
        yield legalize(net, Assignment.uniform(net.layer_names, bits), profile).executed.precision(layer)


def width(precision):
    return precision.weight.bits, precision.activation.bits


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_table_and_single_estimates_price_changes_alike(data):
    net, profile = attention(), load_profile(data.draw(st.sampled_from(["a100", "mobile"])))
    bits = {name: data.draw(st.sampled_from(BIT_WIDTHS)) for name in net.layer_names}
    costs = costs_of(net, profile, bits)
    changes = [{name: costs.wider(name)[-1]} for name in net.layer_names if costs.wider(name)]
    # A table with two of the widths holds none of the others, so that all is estimated one by one.
    poor = replace(costs, table=cost_table(net, profile, batch=1, bits=(4, 8)))
    assert costs.saved_ms(changes) == pytest.approx(poor.saved_ms(changes), abs=1e-12)


@pytest.mark.parametrize("target", ["a100", "mobile", "tpu-v3", "tpu-v4"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_healthy_uniform_network_has_no_cost_findings(target, bits):
    net = workload_of(load_space("mnist_resnet18"))
    costs = costs_of(net, target, bits)
    assert not [s for s in (*not_executed.detect(costs), *no_speedup.detect(costs)) if s.effect is not None]


def many_islands(count, of=17):
    """Linear layers in fp16, `count` of them in int8, each between two fp16 ones."""
    names = [f"l{i}" for i in range(of)]
    nodes = tuple(linear(name, source, 256, 256, rows=64) for name, source in zip(names, ["x", *names], strict=False))
    bits = {name: 8 if i % 2 and i < 2 * count else 16 for i, name in enumerate(names)}
    return Workload("many", (("x", (64, 256)),), nodes, (names[-1],)), bits


def test_islands_too_small_for_a_word_each_are_one_finding():
    net, bits = many_islands(8)
    costs = costs_of(net, machine(kernel_us=0.9, convert="kernel"), bits)
    narrow = tuple(name for name in bits if bits[name] == 8)
    # Two kernels that convert 64 x 256 numbers between fp16 and int8, against 8.4 M operations at 4 and not 2 TOP/s.
    operations, numbers = 2 * 64 * 256 * 256, 64 * 256
    each_s = 2 * (0.9e-6 + numbers * (2 + 1) / GB_S) - (operations / 2e12 - operations / 4e12)
    assert 0 < 1e3 * each_s < 0.01 * costs.now.latency_ms
    (found,) = no_speedup.detect(costs)
    assert sorted(found.layers) == sorted(narrow)
    assert found.effect.latency_ms == pytest.approx(8 * 1e3 * each_s)
    wide = Assignment.of({**costs.executed, **dict.fromkeys(narrow, Precision.parse("fp16/fp16"))})
    saved_ms = costs.now.latency_ms - estimate(net, wide, costs.profile, batch=1).latency_ms
    assert found.effect.latency_ms == pytest.approx(saved_ms)
    assert found.effect.size_bytes == costs.now.size_bytes - size_bytes(net, wide)


def test_a_single_small_island_is_worth_no_word():
    net, bits = many_islands(1)
    assert not list(no_speedup.detect(costs_of(net, machine(kernel_us=0.9, convert="kernel"), bits)))
