"""Measured effects against full passes by hand; going on after a kill; a key that changes with all that matters."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from replay_nets import network, seeded
from torch import Tensor, nn

from haq import diskcache
from haq.errors import InputError
from haq.nn.calibrate import calibrate
from haq.nn.effects import EffectStore, Partial, Recipe, effects_key
from haq.nn.judge import choose_driver
from haq.nn.prepare import Prepared, Quantization, bundle_in_memory, prepare
from haq.nn.sensitivity import Sample, measure_sensitivity
from haq.nn.simulate import Simulator
from haq.nn.subset import spread_rows
from haq.nn.task import Batch, ClassificationTask
from haq.nn.trace import trace
from haq.precision import FP32, Assignment, Precision
from haq.sensitivity import Sensitivity
from haq.techniques import Stack

MODEL, IMAGES = network("residual")
BATCHES = ((IMAGES,), (seeded(2, 3, 8, 8, seed=1),))
LABELS = (torch.tensor([0, 3, 1]), torch.tensor([2, 2]))
WORKLOAD = trace(MODEL, (IMAGES,), name="residual")
STACK = Stack(("mse",))
SIMULATOR = Simulator(MODEL, WORKLOAD, calibrate(MODEL, WORKLOAD, BATCHES, stack=STACK), in_place=True)


def piece(**texts: str) -> Assignment:
    return Assignment.of({name.replace("__", "."): Precision.parse(text) for name, text in texts.items()})


PIECES = (
    piece(stem="int8"), piece(layers__0__conv1="int4/int8", layers__0__conv2="fp32"), piece(layers__0__conv1="fp16"),
    piece(layers__2__conv2="int4/int8"), piece(fc="int8"), piece(fc="bf16"),
)  # fmt: skip


def built(piece: Assignment) -> nn.Module:
    return SIMULATOR.build(Assignment.of({name: piece.get(name, FP32) for name in WORKLOAD.layer_names}))


def measured(
    path: Path | None = None, *, pairs: int = 4, labels: tuple[Tensor, ...] = LABELS, stop_after: int | None = None
) -> tuple[Sensitivity, list[Assignment], list[tuple[int, int]]]:
    """The measurement, every candidate that was built for it, and what progress was told."""
    models: list[Assignment] = []
    told: list[tuple[int, int]] = []

    def build(executed: Assignment) -> nn.Module:
        if stop_after is not None and len(models) == stop_after:
            raise KeyboardInterrupt
        models.append(executed)
        return SIMULATOR.build(executed)

    found = measure_sensitivity(
        build, WORKLOAD, Sample(BATCHES, labels), PIECES, pairs, measure="kl", kept=EffectStore(path),
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    return found, models, told


def full_pass(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(*batch) for batch in BATCHES]).double()


def test_every_effect_is_that_of_a_full_pass() -> None:
    found, _, _ = measured()
    p = full_pass(built(Assignment(()))).log_softmax(1)
    everything = {**dict(zip(PIECES, map(built, PIECES), strict=True))}
    for pair in found.pairs:
        both = built(Assignment.of({**pair.first, **pair.second}))
        _agrees(pair.effect.divergence, pair.effect.loss_increase, p, full_pass(both).log_softmax(1))
    for one, model in everything.items():
        effect = found.effects[one]
        assert effect.samples == found.samples == 5
        _agrees(effect.divergence, effect.loss_increase, p, full_pass(model).log_softmax(1))
    assert len(found.pairs) == 4
    assert 0 < found.effects[PIECES[2]].divergence < 1e-9 < found.effects[PIECES[1]].divergence


def _agrees(divergence: float, loss: float | None, p: Tensor, q: Tensor) -> None:
    labels = torch.cat(LABELS)
    assert divergence == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-6)
    assert loss == pytest.approx(float(F.nll_loss(q, labels) - F.nll_loss(p, labels)), rel=1e-6)


def test_cost_is_counted_in_full_forwards() -> None:
    found, _, _ = measured(pairs=0)
    macs = {layer.name: layer.macs for layer in WORKLOAD.layers}
    order = list(macs)
    first = [next(n for n in order if n in one and one[n] != FP32) for one in PIECES]
    shares = [sum(macs[n] for n in order[order.index(name) :]) / WORKLOAD.macs for name in first]
    assert found.sample_forwards == pytest.approx(5 * (1 + sum(shares)))
    assert measured(pairs=2)[0].sample_forwards > found.sample_forwards + 5


def test_without_labels_the_loss_is_unknown() -> None:
    assert {effect.loss_increase for effect in measured(labels=())[0].effects.values()} == {None}


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9, 15, 18])
def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path, stop_after: int) -> None:
    whole, models, told = measured()
    path = tmp_path / "effects.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measured(path, stop_after=stop_after)
    if path.exists():
        path.write_bytes(path.read_bytes() + b'{"signature": "0123", "batch')  # as if killed while writing
    resumed, again, told_again = measured(path)
    assert (resumed.effects, resumed.pairs, resumed.sample_forwards) == (
        whole.effects, whole.pairs, whole.sample_forwards,
    )  # fmt: skip
    # Candidates of which a line is there are not built again; a batch begun twice runs FP32 twice.
    lost = stop_after - sum(models[i].signature != built_fp32() for i in range(stop_after))
    assert len(again) <= len(models) - stop_after + lost
    assert told == told_again
    assert told[-1] == (len(models) - 4, len(models) - 4)  # four passes of FP32 beside them
    assert measured(path)[1] == []


def built_fp32() -> str:
    return Assignment.uniform(WORKLOAD.layer_names, FP32).signature


def test_a_damaged_line_is_measured_again_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "effects.jsonl"
    whole = measured(path)[0]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0][:20] + "\n", *lines[1:-1], lines[-1][:-5]]))
    found, models, _ = measured(path)
    assert found.effects == whole.effects
    assert len([m for m in models if m.signature != built_fp32()]) == 2
    assert measured(path)[1] == []


def test_a_file_that_cannot_be_written_costs_only_the_file(tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("")
    assert measured(tmp_path / "no folder" / "effects.jsonl")[0].effects == measured()[0].effects


def test_an_overflow_is_an_infinite_divergence_and_the_store_keeps_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    x = seeded(3, 4)
    net = trace(model, (x,), name="large")
    simulator = Simulator(model, net, calibrate(model, net, [(x,)], stack=STACK))
    for _ in range(2):
        found = measure_sensitivity(
            simulator.build, net, Sample(((x,),)), [Assignment.of({"0": Precision.parse("fp16")})], 3, measure="kl",
            kept=EffectStore(tmp_path / "effects.jsonl"), progress=lambda done, total: None,
        )  # fmt: skip
        assert [effect.divergence for effect in found.effects.values()] == [np.inf]
        assert found.pairs == ()
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite in FP32"):
        measure_sensitivity(
            lambda executed: model, net, Sample(((x,),)), [Assignment.of({"0": Precision.parse("fp16")})], 0,
            measure="kl", kept=EffectStore(None), progress=lambda done, total: None,
        )  # fmt: skip


def test_a_relative_error_is_that_of_all_outputs_by_hand() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.a(x)
            return {"a": y, "b": self.b(y), "class": y.argmax(1)}

    model, parts = Two().eval(), (seeded(3, 4), seeded(2, 4, seed=1))
    net = trace(model, (parts[0],), name="two")
    simulator = Simulator(model, net, calibrate(model, net, [(x,) for x in parts], stack=STACK))
    one = Assignment.of({"a": Precision.parse("int4/int8")})
    found = measure_sensitivity(
        simulator.build, net, Sample(tuple((x,) for x in parts)), [one], 0, measure="relative error",
        kept=EffectStore(None), progress=lambda done, total: None,
    )  # fmt: skip
    with torch.inference_mode():
        x = torch.cat(parts)
        exact, rounded = model(x), simulator.build(Assignment.of({"a": one["a"], "b": FP32}))(x)
        error = sum((exact[name] - rounded[name]).square().sum() for name in "ab")
        by_hand = float(error / sum(exact[name].square().sum() for name in "ab"))
    assert found.effects[one].divergence == pytest.approx(by_hand, rel=1e-4)
    assert by_hand > 1e-4


def recipe(**changes: object) -> Recipe:
    given = {
        "model": MODEL, "calibration": BATCHES, "stack": STACK, "observer": "mse", "batches": BATCHES, "labels": LABELS,
        "measure": "kl",
    }  # fmt: skip
    return Recipe(**{**given, **changes})  # type: ignore[arg-type]


def test_the_key_changes_with_weights_structure_data_settings_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    other_weights, other_structure = network("residual")[0], network("residual")[0]
    with torch.no_grad():
        other_weights.fc.bias[0] += 1e-6
    other_structure.stem.stride = (1, 1)
    recipes = [
        recipe(), recipe(model=other_weights), recipe(model=other_structure), recipe(calibration=BATCHES[:1]),
        recipe(stack=Stack(("minmax",))), recipe(observer="minmax"), recipe(batches=BATCHES[:1]), recipe(labels=()),
        recipe(labels=(LABELS[0], LABELS[1] + 1)), recipe(measure="relative error"),
    ]  # fmt: skip
    keys = [effects_key(one) for one in recipes]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert effects_key(recipe(model=network("residual")[0])) == keys[0]
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert effects_key(recipe()) != keys[0]


def test_the_key_follows_the_code_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "users_own_net.py"
    file.write_text("from torch import nn\nclass Net(nn.Sequential):\n    pass\n")
    import users_own_net

    model = users_own_net.Net(nn.ReLU())
    before = effects_key(recipe(model=model))
    file.write_text(file.read_text() + "    def forward(self, x): return 2 * super().forward(x)\n")
    assert before != effects_key(recipe(model=model))
    file.unlink()
    assert effects_key(recipe(model=model)) is None


def test_what_is_in_no_file_is_kept_in_memory() -> None:
    store = EffectStore(None)
    store.add("s", 0, Partial(1.0, 2.0, None, 2, 0.5))
    assert store.get("s", 0) == Partial(1.0, 2.0, None, 2, 0.5)
    assert store.get("s", 1) is None


def prepared(task: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path))
    bundle = bundle_in_memory(MODEL, BATCHES, task, None)  # type: ignore[arg-type]
    assert bundle.task is not None
    driver = choose_driver(bundle.task, None, None, None)
    return prepare(bundle, how=Quantization(STACK), samples=None, driver=driver)


def test_a_prepared_classifier_measures_on_its_calibration_data_and_the_cache_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"search": (Batch((IMAGES,), LABELS[0]),)}
    task = ClassificationTask(splits, BATCHES, "hash", calibration_labels=LABELS)
    ready = prepared(task, tmp_path, monkeypatch)
    told: list[tuple[int, int]] = []
    found = ready.sensitivity(PIECES, 2, lambda done, total: told.append((done, total)))
    assert found.measure == "kl"
    assert found.samples == 5
    by_hand = measured(pairs=2)[0]
    for one in PIECES:
        assert found.effects[one].divergence == pytest.approx(by_hand.effects[one].divergence, rel=1e-6)
        assert found.effects[one].loss_increase == pytest.approx(by_hand.effects[one].loss_increase, rel=1e-6)
    (file,) = (tmp_path / "sensitivity").iterdir()
    assert dict(diskcache.usage().kinds) == {"sensitivity": file.stat().st_size}
    content = file.read_text()
    again = prepared(task, tmp_path, monkeypatch).sensitivity(PIECES, 2, lambda done, total: None)
    assert again.to_json() == found.to_json()
    assert file.read_text() == content
    diskcache.clear()
    assert not file.exists()


def test_a_users_own_function_is_measured_by_relative_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(lambda model: 1.0, tmp_path, monkeypatch).sensitivity(PIECES[:2], 0, lambda done, total: None)
    assert found.measure == "relative error"
    assert all(0 < effect.divergence < 1 for effect in found.effects.values())


def test_samples_are_spread_over_the_data_and_put_together_where_shapes_agree() -> None:
    rows = torch.arange(24.0).view(12, 2)
    batches = tuple((part,) for part in rows.split(4))
    labels = tuple(torch.arange(12).split(4))
    taken, shown = spread_rows(batches, labels, 6, 64)
    assert [part[0][:, 0].tolist() for part in taken] == [[0, 4, 8, 12], [16, 20]]
    assert [part.tolist() for part in shown] == [[0, 2, 4, 6], [8, 10]]
    assert [len(part[0]) for part in spread_rows(batches, (), 99, 3)[0]] == [3, 3, 3, 3]
    assert spread_rows(batches, (), 6, 64)[1] == ()
    texts = ({"ids": torch.ones(2, 5)}, {"ids": torch.ones(2, 3)}, {"ids": torch.ones(2, 3)})
    assert [tuple(part["ids"].shape) for part in spread_rows(texts, (), 99, 64)[0]] == [(2, 5), (2, 3), (2, 3)]
    assert [tuple(part["ids"].shape) for part in spread_rows(texts, (), 3, 64)[0]] == [(1, 5), (2, 3)]
