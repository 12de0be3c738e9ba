"""The finetuning loop: it learns, goes on after a kill to the same bits, keeps to its time, and says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import calibrate
from haq.nn.finetune import EpochDone, Finetuned, Job, Settings, Started, TuneOptions, finetune
from haq.nn.task import Batch, ClassificationTask, Inputs, forward, logits_of
from haq.nn.trace import trace
from haq.nn.training import Recipe, TensorBatches, seeded, train
from haq.nn.tuned import build_tuned, tensors_of
from haq.precision import Assignment, Precision

OPTIONS = TuneOptions(epochs=3, learning_rate=0.01)
BATCHES, SIZE = 6, 32


def points(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Points of a plane, and which of four quarter turns of a spiral they are in: not easy with few bits."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator)
    turn = torch.atan2(x[:, 1], x[:, 0]) + 2 * x.norm(dim=1)
    return x, (turn / (torch.pi / 2)).floor().long() % 4


@pytest.fixture(scope="module")
def job() -> Job:
    """A small classifier that 2-bit-like steps hurt: int4 weights and activations."""
    with seeded(0):
        model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    train(model, TensorBatches(*points(1, 512), 32), Recipe(epochs=40, batch_size=32, learning_rate=0.02, threads=1))
    splits = {split: (Batch((points(seed, 256)[0],), points(seed, 256)[1]),) for split, seed in SEEDS.items()}
    task = ClassificationTask(splits, ((points(4, 128)[0],),), "0")
    workload = trace(model, (points(4, 1)[0],), name="spiral")
    calibration = calibrate(model, workload, task.calibration())
    executed = Assignment.uniform(workload.layer_names, Precision.parse("int4/int4"))
    return Job(model, workload, executed, calibration, task, TensorBatches(*points(1, BATCHES * SIZE), SIZE))


SEEDS = {"search": 2, "validation": 3}


class Killed(BaseException):
    """What stands for `kill -9`: nothing in the loop catches it, so only what was on disk is left."""


class Breaking:
    """Training batches that end the run when the given step is drawn. They change: they count."""

    def __init__(self, source: TensorBatches, at: int) -> None:
        self._source, self._at, self.drawn = source, at, 0

    def __len__(self) -> int:
        return len(self._source)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
        for batch in self._source.epoch(generator):
            if self.drawn == self._at:
                raise Killed
            self.drawn += 1
            yield batch


class Clock:
    """Time that moves by so much whenever it is asked. It changes."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s, self.now_s = tick_s, 0.0

    def __call__(self) -> float:
        self.now_s += self._tick_s
        return self.now_s


def settings(folder: Path, seen: list[Started | EpochDone] | None = None, **changes: Any) -> Settings:
    report = (lambda event: None) if seen is None else seen.append
    return replace(Settings(folder / "a.checkpoint.safetensors", {"config": "c"}, report), **changes)


def same(one: Finetuned, other: Finetuned) -> bool:
    a, b = tensors_of(one.tuned), tensors_of(other.tuned)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def divergence(job: Job, found: Finetuned, *, start: bool = False) -> float:
    """Nats by which the frozen network's answers differ from FP32's on the search split."""
    model = build_tuned(job.model, job.workload, job.executed, found.start if start else found.tuned)
    inputs = job.task.splits["search"][0].inputs
    with torch.inference_mode():
        ours, fp32 = (torch.log_softmax(logits_of(forward(m, inputs)), 1) for m in (model, job.model))
        return float(nn.functional.kl_div(ours, fp32, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_finetuning_gives_back_accuracy_and_the_answers_of_fp32(job: Job, tmp_path: Path, share: float) -> None:
    seen: list[Started | EpochDone] = []
    found = finetune(job, replace(OPTIONS, epochs=30, distillation=share), settings(tmp_path, seen))
    started, *epochs = seen
    assert isinstance(started, Started)
    assert [e.epoch for e in epochs if isinstance(e, EpochDone)] == list(range(1, 31))
    scores = job.task.scores(build_tuned(job.model, job.workload, job.executed, found.tuned), "search")
    best = max(e.search.accuracy for e in epochs if isinstance(e, EpochDone))
    assert np.mean(scores) == best > started.quantized.accuracy
    if share == 1.0:
        assert divergence(job, found) < 0.7 * divergence(job, found, start=True)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(job: Job, tmp_path: Path) -> None:
    runs = [
        finetune(job, replace(OPTIONS, seed=seed), settings(tmp_path / name))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("broken_after", [1, BATCHES, BATCHES + 4, 2 * BATCHES + 5])
def test_a_run_that_is_killed_goes_on_to_the_bits_of_an_unbroken_one(
    job: Job, tmp_path: Path, broken_after: int
) -> None:
    unbroken = finetune(job, OPTIONS, settings(tmp_path / "unbroken"))
    # Two batches are drawn to time a step; every step is written here.
    breaking = Breaking(job.batches, broken_after + 2)  # type: ignore[arg-type]
    often = settings(tmp_path / "broken", checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        finetune(replace(job, batches=breaking), OPTIONS, often)
    seen: list[Started | EpochDone] = []
    resumed = finetune(job, OPTIONS, settings(tmp_path / "broken", seen))
    assert isinstance(seen[0], Started)
    assert seen[0].done == broken_after
    assert same(resumed, unbroken)
    assert resumed.steps == unbroken.steps == 3 * BATCHES


def test_without_a_step_by_step_checkpoint_a_run_goes_on_from_its_last_epoch(job: Job, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        finetune(replace(job, batches=Breaking(job.batches, BATCHES + 5)), OPTIONS, settings(tmp_path))  # type: ignore[arg-type]
    seen: list[Started | EpochDone] = []
    finetune(job, OPTIONS, settings(tmp_path, seen))
    assert isinstance(seen[0], Started)
    assert seen[0].done == BATCHES


def test_a_finished_run_trains_no_more(job: Job, tmp_path: Path) -> None:
    first = finetune(job, OPTIONS, settings(tmp_path))
    seen: list[Started | EpochDone] = []
    assert same(finetune(job, OPTIONS, settings(tmp_path, seen)), first)
    assert len(seen) == 1


def test_training_ends_after_the_step_in_which_the_time_is_over(job: Job, tmp_path: Path) -> None:
    seen: list[Started | EpochDone] = []
    limited = replace(OPTIONS, epochs=1000, max_seconds=20.0)
    clock = Clock(0.5)
    found = finetune(job, limited, settings(tmp_path, seen, clock=clock))
    # A step asks for the time three times: for the rate, for what has passed, and for the checkpoint.
    assert 10 <= found.steps <= 15
    assert found.seconds < 20.0 + 5
    assert isinstance(seen[0], Started)
    assert seen[0].left_s <= 20.0 + 5
    seen.clear()
    again = finetune(job, limited, settings(tmp_path, seen, clock=Clock(0.5)))
    assert again.steps == found.steps
    assert len(seen) == 1


def test_a_limit_that_does_not_bind_changes_nothing(job: Job, tmp_path: Path) -> None:
    free = finetune(job, OPTIONS, settings(tmp_path / "a"))
    limited = finetune(job, replace(OPTIONS, max_seconds=1e6), settings(tmp_path / "b"))
    assert same(free, limited)


def test_a_source_that_gives_fewer_batches_than_it_says_still_ends(job: Job, tmp_path: Path) -> None:
    class Short:
        def __len__(self) -> int:
            return 4

        def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
            return TensorBatches(*points(1, 64), 32).epoch(generator)  # two batches

    seen: list[Started | EpochDone] = []
    finetune(replace(job, batches=Short()), OPTIONS, settings(tmp_path, seen))
    assert [event.epoch for event in seen if isinstance(event, EpochDone)] == [1, 2, 3]


def test_no_epoch_is_kept_that_is_worse_than_the_start(job: Job, tmp_path: Path) -> None:
    class Wrong:
        """Scores that only the first two models, FP32 and the start, get right. It changes: it counts."""

        metric, data_hash, calls = "accuracy", "0", 0

        def calibration(self) -> tuple[Inputs, ...]:
            return ()

        def scores(self, model: nn.Module, split: str) -> float:
            self.calls += 1
            return float(self.calls <= 2)

    found = finetune(replace(job, task=Wrong()), OPTIONS, settings(tmp_path))
    assert found.epoch == 0
    assert same(found, replace(found, tuned=found.start))


def test_a_checkpoint_of_another_run_is_refused_in_one_line(job: Job, tmp_path: Path) -> None:
    finetune(job, OPTIONS, settings(tmp_path))
    with pytest.raises(InputError, match=r"another run is in the way: config is 'c' there.*got 'd'.*delete") as caught:
        finetune(job, OPTIONS, settings(tmp_path, identity={"config": "d"}))
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_an_error(job: Job, tmp_path: Path) -> None:
    (tmp_path / "a.checkpoint.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match="cannot be read"):
        finetune(job, OPTIONS, settings(tmp_path))


def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint_in_the_way(job: Job, tmp_path: Path) -> None:
    class Broken(TensorBatches):
        def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
            for (x,), labels in super().epoch(generator):  # type: ignore[misc]
                yield (x * torch.inf,), labels

    batches = Broken(*points(1, 64), 32)
    with pytest.raises(InputError, match=r"diverged.*--learning-rate below 0\.01"):
        finetune(replace(job, batches=batches), OPTIONS, settings(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"learning_rate": 2.0}, "--learning-rate"),
        ({"distillation": 1.1}, "--distillation"),
        ({"temperature": 0.0}, "--temperature"),
        ({"max_seconds": 0.0}, "--max-minutes"),
    ],
)
def test_options_out_of_range_are_errors(job: Job, tmp_path: Path, change: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        finetune(job, replace(OPTIONS, **change), settings(tmp_path))


def test_the_callers_random_numbers_are_untouched(job: Job, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(job, replace(OPTIONS, epochs=1), settings(tmp_path))
    assert torch.equal(torch.rand(3), expected)
