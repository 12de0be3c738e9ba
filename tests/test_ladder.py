"""Ladders: nested, the widest last, measured, kept in a config, and applied with nothing but that file."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recovery_bench import case
from small_configs import LAYERS, content, images, network
from test_cli import Haq

from haq.configcheck import config_faults
from haq.diagnose.ladder import Measured, ladder, ladder_json, losses_of, pieces_of
from haq.diagnose.losses import Known, predicted
from haq.diagnose.stepping import stepped
from haq.errors import InputError
from haq.nn.calibrate import calibrate
from haq.nn.exportable import numbers_of
from haq.nn.fold import fold_batch_norm
from haq.nn.load import load
from haq.nn.simulate import Simulator
from haq.nn.trace import trace
from haq.nn.tuned import write_tuned
from haq.precision import Assignment, Precision
from haq.sensitivity import Effect, Sensitivity


def steps_of(shares=(0.3, 0.2, 0.05, 0.0), formats=("int4/int4",) * 4, target="t4", rungs=4):
    bench, options = case((128, 512, 64, 256, 32), formats, shares, target=target)
    losses = predicted(options, Known(sum(shares), dict(enumerate(shares)), {}))
    return bench, options, ladder(options, losses, rungs)


def measured(bench):
    score = lambda layers: bench.outcome(dict(layers)).scores  # noqa: E731
    return Measured("search", np.ones(bench.samples), score({}), score)


@pytest.mark.parametrize("formats", [("int4/int4",) * 4, ("int8/int8",) * 4, ("int4/int4", "fp16/fp16") * 2])
@pytest.mark.parametrize("rungs", [1, 2, 4])
def test_steps_are_nested_and_the_last_is_the_widest(formats, rungs):
    bench, options, steps = steps_of(formats=formats, rungs=rungs)
    assert 1 <= len(steps) <= rungs
    widths = [{layer: (p.weight.bits, p.activation.bits) for layer, p in step.layers.items()} for step in steps]
    for below, above in itertools.pairwise(widths):
        assert all(above[layer] >= width for layer, width in below.items())
        assert below != above
    assert dict(steps[-1].layers) == dict(options.raised(options.widest))
    assert {str(p) for p in steps[-1].layers.values()} == {"fp32/fp32"}
    lost = [sum(bench.lost(n, step.layers.get(n, bench.executed[n])) for n in bench.layers) for step in steps]
    assert lost == sorted(lost, reverse=True)


def test_each_step_leaves_a_quarter_of_the_loss_or_less_at_the_least_cost():
    _, options, steps = steps_of(shares=(0.8, 0.1, 0.1, 0.0))
    # A quarter of 1.0 may be left: the first layer has to go, and nothing else.
    assert set(steps[0].layers) == {"l0"}
    assert steps[0].costs["size_bytes"] > options.costs(options.now)["size_bytes"]


def test_nothing_to_raise_is_no_ladder():
    assert steps_of(formats=("fp32/fp32",) * 4)[2] == ()


def test_steps_carry_measured_accuracy_and_modelled_costs():
    bench, _, steps = steps_of()
    found = ladder_json(steps, measured(bench), {"confidence": "nominal"})
    assert [step["monotone"] for step in found] == [True] * len(steps)
    last = found[-1]["metrics"]
    assert (last["accuracy"]["value"], last["accuracy"]["drop_points"], last["accuracy"]["split"]) == (1, 0, "search")
    assert last["accuracy"]["drop_interval"]["high"] > 0
    assert last["latency_ms"] == {"value": steps[-1].costs["latency_ms"], "kind": "modelled", "confidence": "nominal"}
    drops = [step["metrics"]["accuracy"]["drop_points"] for step in found]
    assert drops == sorted(drops, reverse=True)


def test_a_step_that_is_measurably_worse_says_so():
    bench, _, steps = steps_of()
    worst = np.ones(bench.samples)
    worst[:100] = 0
    how = Measured("search", np.ones(bench.samples), np.ones(bench.samples), lambda layers: worst)
    first, *others = ladder_json(steps, how, {})
    assert not first["monotone"]
    assert first["note"].startswith("5.00 points (")
    assert all(step["monotone"] for step in others)  # as bad as the one before
    better = ladder_json(steps, Measured("search", 0.5, 0.5, lambda layers: 0.4, "minimize"), {})
    assert all(step["monotone"] for step in better)


def test_losses_come_from_sensitivities_where_they_are_known():
    _, options, _ = steps_of()
    effects = {Assignment.of({"l0": Precision.parse("int4/int4")}): Effect(0.5, None, 64)}
    losses = losses_of(options, Sensitivity("kl", 64, effects, (), 0.0))
    assert losses[0, 0] == pytest.approx(0.5, rel=2e-3)
    assert losses[0, 1] == pytest.approx(0.5, rel=2e-3)  # a bound: what is wider loses no more
    assert losses[1, 0] == pytest.approx(0.5, rel=2e-3)  # by noise, beside what is known
    assert len(pieces_of(options)) == sum(len(rungs) for rungs in options.rungs)
    np.testing.assert_array_equal(losses_of(options, None)[2, : len(options.noise[2])], options.noise[2])


# A config of a small real network.

NOW = ("int4/int8", "int8/int8", "int8/int8")


def step(layers, drop=0.5, **more):
    accuracy = {"value": 0.9, "kind": "measured", "split": "search", "samples": 10, "drop_points": drop}
    size = {"value": 2000, "kind": "modelled"}
    return {"layers": layers, "metrics": {"accuracy": accuracy, "size_bytes": size}, "monotone": True, **more}


RECOVERY = [
    step({"0": "int8/int8"}),
    step({"0": "fp32/fp32", "7": "fp16/fp16"}),
    step(dict.fromkeys(LAYERS, "fp32/fp32"), 0.0),
]


def on_disk(folder: Path, **more: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content(network(), NOW, **{"recovery": RECOVERY, **more})))
    return path


def test_a_config_with_a_ladder_is_valid_and_one_that_is_not_nested_is_not(tmp_path):
    assert config_faults(on_disk(tmp_path)) == ()
    taken_back = [step({"0": "int8/int8"}), step({"3": "fp16/fp16"})]
    assert [f.path for f in config_faults(on_disk(tmp_path, recovery=taken_back))] == ["$.recovery[1].layers['0']"]
    (fault,) = config_faults(on_disk(tmp_path, recovery=[step({"nine": "int8/int8"})]))
    assert fault.path == "$.recovery[0].layers.nine"
    assert config_faults(on_disk(tmp_path, recovery=[step({})]))


@pytest.mark.parametrize(("number", "left"), [(1, 2), (2, 1), (3, 0)])
def test_a_step_gives_a_valid_config_with_the_rest_of_its_ladder(tmp_path, number, left):
    source = on_disk(tmp_path)
    raw = stepped(json.loads(source.read_text()), number, "here")
    out = tmp_path / "out.json"
    out.write_text(json.dumps(raw))
    assert config_faults(out) == ()
    assert raw["layers"] == {**dict(zip(LAYERS, NOW, strict=True)), **RECOVERY[number - 1]["layers"]}
    assert len(raw.get("recovery", [])) == left
    assert raw["metrics"] == RECOVERY[number - 1]["metrics"]
    if left:  # climbing on gives what climbing at once gives
        again = stepped(raw, left, "here")
        assert again["layers"] == dict.fromkeys(LAYERS, "fp32/fp32")
        assert again["id"] == stepped(json.loads(source.read_text()), 3, "here")["id"]


def test_there_is_no_step_beyond_the_ladder():
    raw = content(network(), NOW, recovery=RECOVERY)
    for number in (0, 4, -1):
        with pytest.raises(InputError, match="1 to 3"):
            stepped(raw, number, "here")
    with pytest.raises(InputError, match="carries no recovery ladder"):
        stepped(content(network(), NOW), 1, "here")


def test_a_step_is_applied_without_torch_in_under_a_second(tmp_path):
    source, out = on_disk(tmp_path), tmp_path / "out.json"
    code = (
        "import sys\nfrom haq.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'optuna', 'scipy.optimize', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = ["recover", str(source), "--step", "2", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 2" in done.stdout
    assert json.loads(out.read_text())["layers"]["0"] == "fp32/fp32"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert config_faults(out) == ()


def test_a_step_says_what_is_wrong(tmp_path, capsys):
    run = Haq(capsys)
    source, out = on_disk(tmp_path), tmp_path / "out.json"
    run.error("recover", source, "--step", 9, "--out", out)
    run.error("recover", source, "--step", 1, "--out", source)
    run.error("recover", source, "--step", 1, "--max-drop", 1, "--out", out)
    run.error("recover", source, "--out", out)
    assert not out.exists()


def test_a_step_of_a_config_with_numbers_copies_them_and_raised_layers_take_the_models_own(tmp_path):
    model, batches = network(), (((images(1, 32)),),)
    folded = fold_batch_norm(model, (images(1, 1),))
    workload = trace(folded, (images(1, 1),), name="Sequential")
    executed = Assignment.of({n: Precision.parse(p) for n, p in zip(LAYERS, NOW, strict=True)})
    numbers = numbers_of(Simulator(folded, workload, calibrate(folded, workload, batches)), executed)
    sha256 = write_tuned(tmp_path / "numbers.safetensors", numbers)
    ladder = [step({"0": "fp32/fp32"}), step(dict.fromkeys(LAYERS, "fp32/fp32"), 0.0)]
    about = {"parameters": "numbers.safetensors", "parameters_sha256": sha256, "recovery": ladder}
    source, elsewhere = on_disk(tmp_path, **about), tmp_path / "there" / "out.json"
    from haq.recovering import apply_step

    apply_step(source, 2, elsewhere)
    assert (elsewhere.parent / "numbers.safetensors").read_bytes() == (tmp_path / "numbers.safetensors").read_bytes()
    assert config_faults(elsewhere) == ()
    x = images(3, 8)
    with torch.inference_mode():
        torch.testing.assert_close(load(elsewhere, model, example=(x,))(x), model(x), rtol=1e-4, atol=1e-5)
        as_is = load(source, model, example=(x,))(x)
        apply_step(source, 1, tmp_path / "one.json")
        one = load(tmp_path / "one.json", model, example=(x,))(x)
        assert (one - model(x)).norm() < (as_is - model(x)).norm()
    (tmp_path / "there" / "numbers.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match="other parameters lie"):
        apply_step(source, 1, elsewhere)
