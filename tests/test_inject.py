"""Planted faults: each is what it says by arithmetic, at one place, and the FP32 network computes the same."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_nets import bundle_of, config_of, numbers
from nets import residual
from torch import nn

from haq.diagnose.cost_faults import cost_places, plant_no_speedup, plant_not_executed
from haq.diagnose.inject import inject
from haq.diagnose.strengths import ACCURACY_MODES, STRENGTHS
from haq.errors import InputError
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.nn.diagnosis.faults import FAULTS, places, touched
from haq.nn.diagnosis.looked import bits_needed
from haq.nn.diagnosis.subject import Subject, subject_of
from haq.nn.exportable import exportable
from haq.nn.quantizers import QuantizedWeight
from haq.nn.tuned import build_tuned
from haq.precision import Assignment
from haq.spacefile import load_space
from haq.tracecache import workload_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv3, self.relu, self.clip = nn.Conv2d(16, 16, 1), nn.ReLU(), nn.ReLU6()
        self.conv2.weight.data *= 20  # so that the clip cuts something off

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(self.clip(self.conv2(self.relu(self.conv1(x)))))
        return self.relu(x + y)


class Net(nn.Module):
    """A stem, two residual blocks whose ReLUs run twice, an attention over places, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.stem(x))).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
        return self.head((x + self.out(seen.transpose(1, 2).flatten(2))).mean(1))


@pytest.fixture(scope="module")
def subject() -> Subject:
    batches = [(numbers(16, 3, 6, 6, seed=seed),) for seed in range(3)]
    bundle = bundle_of(Net().eval(), batches)
    made = exportable(config_of(bundle, "int8/int8"), bundle, Path("config.json"))
    return subject_of(replace(made, config={**made.config, "quantization": {"ptq": ["bn_fold"], "observer": "minmax"}}))


SERVED = numbers(8, 3, 6, 6, seed=9)


def answer(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(SERVED).clone()


def planted(subject: Subject, mode: str, layer: str | None = None, strength: float | None = None, seed: int = 0):
    where = places(subject, mode)[0] if layer is None else layer
    return inject(subject, mode, where, STRENGTHS[mode].defaults[0] if strength is None else strength, seed)


def contents(subject: Subject) -> dict[str, object]:
    """All that a fault may touch, as values."""

    def of(weight: object) -> object:
        return (
            (weight.codes.tolist(), weight.scales.tolist()) if isinstance(weight, QuantizedWeight) else weight.tolist()
        )

    return {
        "weights": {key: of(weight) for key, weight in subject.numbers.weights.items()},
        "biases": {k: b.tolist() for k, b in subject.numbers.biases.items()},
        "quantizers": dict(subject.numbers.quantizers),
        "executed": subject.executed,
        "steps": (dict(subject.join_steps), dict(subject.forced_steps), dict(subject.accumulators)),
        "model": {k: v.tolist() for k, v in subject.model.state_dict().items()},
        "histograms": [a.tolist() for a in vars(subject.calibrated.histograms).values()],
    }


@pytest.mark.parametrize("mode", ACCURACY_MODES)
def test_every_fault_leaves_the_fp32_function_and_the_given_subject_and_follows_its_seed(subject, mode: str) -> None:
    before, exact = contents(subject), answer(subject.model)
    made = planted(subject, mode, seed=3)
    assert contents(subject) == before
    assert contents(made) != before
    assert contents(planted(subject, mode, seed=3)) == contents(made)
    moved = (answer(made.model) - exact).abs().max() / exact.abs().max()
    assert moved < 1e-4
    answer(made.build())  # and it runs


@pytest.mark.parametrize("mode", ["biased-error", "channel-imbalance", "degenerate-scale"])
def test_another_seed_is_another_fault(subject, mode: str) -> None:
    assert contents(planted(subject, mode, seed=1)) != contents(planted(subject, mode, seed=2))


def test_outliers_stretch_the_range_by_the_strength_and_the_histogram_keeps_its_bulk(subject) -> None:
    layer = "blocks.0.conv2"  # reads behind a ReLU: from 0
    made = planted(subject, "activation-outliers", layer, 32)
    row = subject.calibrated.rows[layer, 0]
    high = subject.calibrated.histograms.high[row]
    assert made.numbers.quantizers[layer, 0].scale * 255 == pytest.approx(32 * high, rel=1e-6)
    old, new = subject.calibrated.histograms, made.calibrated.histograms
    assert new.high[row] == pytest.approx(32 * high)
    assert new.counts[row].sum() == old.counts[row].sum() + 4
    assert new.counts[row, -1] == 4
    width = 32 * high / 2048
    assert new.counts[row, : int(np.ceil(high / width))].sum() == old.counts[row].sum()
    others = [name for name in made.numbers.quantizers if name != (layer, 0)]
    assert all(made.numbers.quantizers[name] == subject.numbers.quantizers[name] for name in others)


def test_a_mismatch_shrinks_quantizer_and_calibration_alike(subject) -> None:
    layer = "blocks.1.conv1"
    made = planted(subject, "calibration-mismatch", layer, 4)
    row = subject.calibrated.rows[layer, 0]
    assert made.numbers.quantizers[layer, 0].scale == subject.numbers.quantizers[layer, 0].scale / 4
    assert made.calibrated.histograms.high[row] == subject.calibrated.histograms.high[row] / 4
    assert (made.calibrated.histograms.counts[row] == subject.calibrated.histograms.counts[row]).all()


def test_an_imbalanced_weight_has_one_scale_and_channels_as_unlike_as_asked(subject) -> None:
    layer = "blocks.0.conv1"
    made = planted(subject, "channel-imbalance", layer, 256)
    stored = made.numbers.weights[f"{layer}.weight"]
    assert len(set(stored.scales.tolist())) == 1
    assert stored.scales.shape == (16,)
    ratio = made.model.get_parameter(f"{layer}.weight") / subject.model.get_parameter(f"{layer}.weight")
    by_channel = ratio.flatten(1)
    assert (by_channel == by_channel[:, :1]).all()
    assert by_channel.min() == 1 / 256
    assert by_channel.max() == 1
    # all else is as it was: with the weight's own numbers put back, the deployed network is the healthy one
    healed = {**made.numbers.weights, f"{layer}.weight": rescaled_codes(subject, layer, by_channel[:, 0])}
    healthy = made.with_(numbers=replace(made.numbers, weights=healed))
    assert torch.allclose(answer(healthy.build()), answer(subject.build()), rtol=1e-5, atol=1e-6)


def rescaled_codes(subject: Subject, layer: str, factors: torch.Tensor) -> QuantizedWeight:
    stored = subject.numbers.weights[f"{layer}.weight"]
    return replace(stored, scales=stored.scales * factors)


def test_pairs_pass_relus_that_run_twice_clips_and_attention_and_no_shortcut(subject) -> None:
    producers = ("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "value")
    assert places(subject, "channel-imbalance") == producers  # conv3, stem and out lie before an addition
    with torch.inference_mode():
        seen = subject.model.get_submodule("blocks.0.conv2")(torch.relu(numbers(4, 16, 6, 6)))
    assert seen.max() > 6
    clipped = planted(subject, "channel-imbalance", "blocks.0.conv2", 256)
    assert clipped.model.get_submodule("blocks.0.clip").ceilings.min() == 6 / 256
    made = planted(subject, "channel-imbalance", "value", 256)
    assert touched(subject, "channel-imbalance", "value") == ("value", "matmul_1")
    assert made.numbers.quantizers["matmul_1", 1] != subject.numbers.quantizers["matmul_1", 1]
    assert made.numbers.quantizers["out", 0] == subject.numbers.quantizers["out", 0]


def test_a_bias_is_off_by_that_many_deviations_of_its_channel(subject) -> None:
    made = planted(subject, "biased-error", "stem", 0.5)
    shift = made.numbers.biases["stem.bias"] - subject.numbers.biases["stem.bias"]
    with torch.inference_mode():
        y = subject.model.get_submodule("stem")(subject.calibrated.batches[0][0])
    deviation = y.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    assert torch.allclose(shift.abs(), deviation / 2, rtol=1e-4)
    assert {1.0, -1.0} == set(shift.sign().tolist())


def test_an_fp16_layer_passes_its_limit_by_the_strength_and_its_reader_undoes_it(subject) -> None:
    layer, reader = "blocks.0.conv1", "blocks.0.conv2"
    made = planted(subject, "float-range", layer, 2)
    row = subject.calibrated.rows[reader, 0]
    factor = made.calibrated.histograms.high[row] / subject.calibrated.histograms.high[row]
    assert np.log2(factor) == int(np.log2(factor))
    assert 2 <= made.calibrated.histograms.high[row] / 65504 < 4
    assert str(made.executed.precision(layer)) == "fp16/fp16"
    assert (layer, 0) not in made.numbers.quantizers
    old, new = (s.numbers.weights[f"{reader}.weight"] for s in (subject, made))
    assert torch.equal(new.codes, old.codes)
    assert torch.equal(new.scales * factor, old.scales)
    with torch.inference_mode():
        seen: list[torch.Tensor] = []
        keep = {layer: lambda y, x: seen.append(y) or y}
        built = build_tuned(made.model, made.workload, made.executed, made.numbers, keep)
        built(subject.calibrated.batches[0][0])
    assert torch.isinf(seen[0]).any()


def test_weights_that_would_leave_fp16_themselves_are_refused(subject) -> None:
    with pytest.raises(InputError, match=r"weights would leave fp16 too.*at most"):
        planted(subject, "float-range", "blocks.0.conv1", 5000)


def test_an_accumulator_is_that_many_bits_too_narrow(subject) -> None:
    layer = "stem"
    stored, quantizer = subject.numbers.weights["stem.weight"], subject.numbers.quantizers[layer, 0]
    x = subject.calibrated.batches[0][0]
    codes = quantizer.codes(x).double() - quantizer.zero_point
    largest = nn.functional.conv2d(codes, stored.codes.double(), padding=1).abs().max()
    need = int(np.ceil(np.log2(float(largest) + 1))) + 1
    assert bits_needed(subject, layer) == need
    assert planted(subject, "accumulator-saturation", layer, 3).accumulators == {layer: f"int{need - 3}"}


def test_lost_scales_are_zero_and_nothing_else_changes(subject) -> None:
    made = planted(subject, "degenerate-scale", "head", 0.4)
    new, old = (s.numbers.weights["head.weight"] for s in (made, subject))
    assert int((new.scales == 0).sum()) == 2  # of 5
    assert torch.equal(new.scales[new.scales > 0], old.scales[new.scales > 0])
    assert torch.equal(new.codes, old.codes)
    assert made.scale_format.name == "fp16"


def test_steps_of_forced_ops_and_joins_follow_the_range_of_the_result(subject) -> None:
    with torch.inference_mode():
        y = subject.model.get_submodule("stem")(subject.calibrated.batches[0][0])
    width = float(y.max() - y.min())
    assert planted(subject, "sensitive-operator", "stem", 3).forced_steps["stem"] == pytest.approx(width / 7, rel=1e-5)
    join = "blocks.0.conv3"
    assert places(subject, "join-mismatch") == (join, "blocks.1.conv3", "out")
    small, large = (planted(subject, "join-mismatch", join, s).join_steps[join] for s in (1, 64))
    assert large == pytest.approx(64 * small)


def test_a_block_loses_gain_in_every_layer_of_it(subject) -> None:
    assert places(subject, "error-accumulation") == ("blocks.0.conv1", "blocks.1.conv1")
    names = touched(subject, "error-accumulation", "blocks.1.conv2")
    assert names == ("blocks.1.conv1", "blocks.1.conv2", "blocks.1.conv3")
    made = FAULTS["error-accumulation"](subject, "blocks.1.conv2", 0.2, np.random.default_rng(0))
    for key, stored in made.numbers.weights.items():
        share = 0.8 if key.removesuffix(".weight") in names else 1.0
        assert torch.allclose(stored.scales, share * subject.numbers.weights[key].scales)


def test_two_faults_add_up(subject) -> None:
    made = planted(planted(subject, "calibration-mismatch", "stem"), "join-mismatch", "out")
    assert set(made.join_steps) == {"out"}
    assert made.numbers.quantizers["stem", 0] != subject.numbers.quantizers["stem", 0]


@pytest.mark.parametrize("mode", ["channel-imbalance", "float-range"])
def test_a_plain_network_is_rescaled_in_its_weights(subject, mode: str) -> None:
    exact = answer(subject.model)
    made = inject(subject.model, mode, "blocks.0.conv1", 2, example=subject.calibrated.batches[0])
    assert (answer(made) - exact).abs().max() < 1e-4 * exact.abs().max()
    ratios = made.get_parameter("blocks.0.conv2.weight") / subject.model.get_parameter("blocks.0.conv2.weight")
    if mode == "channel-imbalance":
        assert set(ratios.flatten().tolist()) == {1.0, 2.0}
    else:
        assert torch.log2(ratios).unique().numel() == 1


def test_a_config_asks_for_what_the_target_does_not_run_and_says_so() -> None:
    config = {
        "schema": "haq.config/v1", "id": "x", "model": {"model": "mnist_resnet18"},
        "target": {"name": "a100", "batch": 1},
        "layers": {}, "metrics": {"accuracy": {"value": 0.98, "kind": "measured"}},
    }  # fmt: skip

    workload, profile = workload_of(load_space("mnist_resnet18")), load_profile("a100")
    uniform = Assignment.uniform(workload.layer_names, 8)
    config["layers"] = legalize(workload, uniform, profile).executed.to_json()
    config["requested_bits"] = uniform.to_json()
    before = json.dumps(config)
    made = inject(config, "not-executed", "layer4.0.conv1", 1)
    assert json.dumps(config) == before
    assert [f["layer"] for f in made["fallbacks"]] == ["layer4.0.conv1"]
    assert made["requested_bits"]["layer4.0.conv1"] == 4
    assert made["layers"] == config["layers"]
    assert "accuracy" not in made["metrics"]
    assert inject(config, "sensitive-operator", "fc", 4)["layers"]["fc"] == "int4/fp16"
    island = inject(config, "no-speedup", "layer1.0.conv1", 1)
    assert [n for n, p in island["layers"].items() if p == "int8/int8"] == ["layer1.0.conv1"]


@pytest.mark.parametrize("target", ["a100", "mobile"])
def test_islands_cost_more_than_no_islands(target: str) -> None:
    workload, profile = residual(), load_profile(target)
    wide = Assignment.uniform(workload.layer_names, 16)

    def latency_ms(assignment: Assignment) -> float:
        return estimate(workload, legalize(workload, assignment, profile).executed, profile, batch=1).latency_ms

    where = cost_places(workload, profile, "no-speedup")
    assert where
    for layer in where:
        made = plant_no_speedup(workload, wide, profile, layer)
        assert made[layer] == 8
        assert latency_ms(made) > latency_ms(wide)


def test_a_tpu_and_the_reference_have_no_islands_and_the_reference_runs_what_it_is_asked() -> None:
    workload = residual()
    uniform = Assignment.uniform(workload.layer_names, 8)
    assert cost_places(workload, load_profile("tpu-v4"), "no-speedup") == ()
    with pytest.raises(InputError, match="no layer at all"):
        plant_not_executed(workload, uniform, load_profile("reference"), "b")
    profile = load_profile("tpu-v4")
    tpu = legalize(workload, plant_not_executed(workload, uniform, profile, "b", 2), profile)
    assert [f.layer for f in tpu.fallbacks] == ["b", "c"]


@pytest.mark.parametrize(
    ("mode", "layer", "strength", "message"),
    [
        ("outliers", "stem", 2, "unknown failure mode.*activation-outliers"),
        ("activation-outliers", "stemm", 32, "did you mean 'stem'"),
        ("float-range", "stem", 2, "cannot be planted here.*blocks.0.conv1"),
        ("degenerate-scale", "stem", 2, "from 1e-06 to 1: the share"),
        ("accumulator-saturation", "stem", 1.5, "a whole number"),
        ("no-speedup", "stem", 1, "cannot be planted in a quantized network"),
    ],
)
def test_what_cannot_be_planted_is_refused_with_what_can(subject, mode, layer, strength, message) -> None:
    with pytest.raises(InputError, match=message):
        inject(subject, mode, layer, strength)


def test_other_things_are_refused_too(subject) -> None:
    with pytest.raises(InputError, match="example="):
        inject(subject.model, "float-range", "stem", 2)
    with pytest.raises(InputError, match="an FP32 network"):
        inject(subject.model, "biased-error", "stem", 1, example=subject.calibrated.batches[0])
    with pytest.raises(InputError, match="in a config"):
        inject({}, "biased-error", "stem", 1)
    with pytest.raises(InputError, match="got 'str'"):
        inject("model.onnx", "biased-error", "stem", 1)
    bare = subject.with_(calibrated=None)
    with pytest.raises(InputError, match="calibration data"):
        inject(bare, "join-mismatch", "out", 64)


def test_the_list_of_cases_is_complete_and_each_can_be_planted(subject) -> None:
    path = Path(__file__).parents[1] / "experiments" / "diagnose" / "cases.py"
    spec = importlib.util.spec_from_file_location("cases_of_diagnosis", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert module.chosen("abcdefghijkl") == ("b", "g", "k")
    found = list(module.cases("tiny", subject, {name: load_profile(name) for name in module.TARGETS}))
    assert len({case.name for case in found}) == len(found)
    single = [case for case in found if len(case.modes) == 1]
    assert {case.modes[0] for case in single} == set(STRENGTHS)
    assert sum(case.modes == () for case in found) == 3
    two = [case for case in found if len(case.modes) == 2]
    assert len(two) <= 45
    for case in two[:8]:
        made = subject
        for mode, layer, strength in zip(case.modes, case.layers, case.strengths, strict=True):
            made = inject(made, mode, layer, strength, case.seed)
