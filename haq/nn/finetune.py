"""Finetunes a quantized network for a few epochs: distilled from FP32, bounded in time, resumable after a kill."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.accuracy import Measurement, compare
from haq.errors import InputError
from haq.history import SEARCH
from haq.nn.calibrate import Calibration
from haq.nn.qat import Trainable
from haq.nn.task import Inputs, Task, forward, logits_of
from haq.nn.training import BatchSource, seeded
from haq.nn.tune_checkpoint import Position, Progress, load_checkpoint, save_checkpoint
from haq.nn.tuned import Tuned, build_tuned
from haq.precision import Assignment
from haq.workload import Workload

WARMUP = 0.1
"""The share of the run in which the learning rate rises."""
LARGEST_GRADIENT_NORM = 5.0
CHECKPOINT_EVERY_S = 120.0


@dataclass(frozen=True)
class TuneOptions:
    """How to finetune; everything here changes the result.

    learning_rate: the peak, as a share of each channel's range of weights; it rises, then falls along a cosine.
    temperature, distillation: how much both sides of the divergence from FP32 are softened, and how much it counts; the
    rest is cross-entropy with the labels (Hinton et al. 2015). max_seconds: of training; the schedule ends with it.
    """

    epochs: int
    learning_rate: float = 1e-3
    temperature: float = 2.0
    distillation: float = 1.0
    seed: int = 0
    max_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """What is finetuned on what. model: folded FP32, the teacher too. batches: of the training split, or the user's."""

    model: nn.Module
    workload: Workload
    executed: Assignment
    calibration: Calibration
    task: Task
    batches: BatchSource


@dataclass(frozen=True)
class Started:
    """Before the first step. quantized: FP32's drop as the run starts, on the search split. done: steps from before."""

    quantized: Measurement
    epochs: int
    steps: int
    done: int
    left_s: float


@dataclass(frozen=True)
class EpochDone:
    """After an epoch, or the part of one that the time allowed. loss: mean over its steps."""

    epoch: int
    epochs: int
    loss: float
    search: Measurement
    left_s: float


@dataclass(frozen=True, eq=False)
class Settings:
    """How a run is done, apart from what it gives. identity: names the run in its checkpoint, plain JSON data."""

    checkpoint: Path
    identity: Mapping[str, Any]
    report: Callable[[Started | EpochDone], None]
    clock: Callable[[], float] = time.monotonic
    checkpoint_every_s: float = CHECKPOINT_EVERY_S


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What came out. epoch: whose numbers these are, the best on the search split, 0 for the start. steps: trained."""

    tuned: Tuned
    start: Tuned
    epoch: int
    steps: int
    seconds: float


def finetune(job: Job, options: TuneOptions, settings: Settings) -> Finetuned:
    """The finetuned numbers; goes on from the checkpoint if there is one, and leaves the last one there.

    With the same options, machine and number of threads the result is the same in every bit, however often the run was
    broken off, unless a limit of time ends it. Raises InputError on options out of range, on a checkpoint of another
    run, and when training diverges.
    """
    check_options(options)
    with seeded(options.seed):
        return _Run(job, options, settings).finished()


class _Run:
    """One run. It changes: it trains. `_at` says how far it is."""

    def __init__(self, job: Job, options: TuneOptions, settings: Settings) -> None:
        self._job, self._options, self._settings = job, options, settings
        self._student = Trainable(job.model, job.workload, job.executed, job.calibration)
        # Half the time of torch's usual order of axes on a CPU; the values are the same.
        self._teacher = copy.deepcopy(job.model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(self._student.parameters(), lr=options.learning_rate, weight_decay=0.0)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._epoch_start = self._generator.get_state()
        self._start = self._best = self._student.frozen()
        self._at = Position()
        self._began_s = self._saved_s = settings.clock()

    def finished(self) -> Finetuned:
        """The outcome, after whatever is left to train."""
        self._fp32 = self._job.task.scores(self._job.model, SEARCH)
        quantized, self._judge_s = self._judged()
        self._step_s = self._time_of_a_step()
        self._at = replace(self._at, best_accuracy=quantized.accuracy)
        self._restore()
        self._began_s = self._saved_s = self._settings.clock()
        self._settings.report(
            Started(quantized, self._options.epochs, len(self._job.batches), self._done, self._left_s())
        )
        while not self._over():
            self._end_epoch(whole=self._train_epoch())
        return Finetuned(self._best, self._start, self._at.best_epoch, self._done, self._at.elapsed_s)

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch under way, or to the limit of time; whether it was the end."""
        self._generator.set_state(self._epoch_start)
        for step, (inputs, labels) in enumerate(self._job.batches.epoch(self._generator)):
            if step < self._at.step:
                continue  # trained before the run was broken off; drawing it moved the generator on
            loss = self._train_step(inputs, labels)
            self._at = replace(self._at, step=step + 1, loss=self._at.loss + loss, elapsed_s=self._elapsed_s())
            if self._over():
                return self._at.step >= len(self._job.batches)
            if self._settings.clock() - self._saved_s >= self._settings.checkpoint_every_s:
                self._save()
        return True

    def _train_step(self, inputs: Inputs, labels: Tensor) -> float:
        """One update; returns the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.learning_rate * self._rate()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(inputs, labels)
        if not bool(torch.isfinite(loss)):
            self._settings.checkpoint.unlink(missing_ok=True)
            raise InputError(
                "finetuning diverged: the loss is not finite", where=f"step {self._done + 1}", got=loss.item(),
                expected="a finite loss", way_out=f"a --learning-rate below {self._options.learning_rate:g}",
            )  # fmt: skip
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._student.parameters(), LARGEST_GRADIENT_NORM)
        self._optimizer.step()
        return loss.item()

    def _loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """Divergence from FP32, at the temperature and times its square, and cross-entropy (Hinton et al. 2015)."""
        share, heat = self._options.distillation, self._options.temperature
        with torch.no_grad():
            teacher = torch.log_softmax(logits_of(forward(self._teacher, inputs)) / heat, dim=-1)
        logits = logits_of(forward(self._student, inputs))
        student = torch.log_softmax(logits / heat, dim=-1)
        divergence = nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean") * heat**2
        return (
            divergence if share == 1 else share * divergence + (1 - share) * nn.functional.cross_entropy(logits, labels)
        )

    def _end_epoch(self, *, whole: bool) -> None:
        """Judge the epoch, or part of one, on the search split, keep it if it is the best, and write a checkpoint."""
        at, (search, self._judge_s) = self._at, self._judged()
        mean_loss = at.loss / max(1, at.step)
        if search.accuracy >= at.best_accuracy:  # of equals the later one: its learning rate was lower
            self._best = self._student.frozen()
            at = replace(at, best_accuracy=search.accuracy, best_epoch=at.epoch + 1)
        if whole:
            at = replace(at, epoch=at.epoch + 1, step=0, loss=0.0)
            self._epoch_start = self._generator.get_state()
        self._at = replace(at, elapsed_s=self._elapsed_s())
        self._save()
        shown = self._at.epoch if whole else self._at.epoch + 1
        self._settings.report(EpochDone(shown, self._options.epochs, mean_loss, search, self._left_s()))

    def _judged(self) -> tuple[Measurement, float]:
        """The student on the search split as it would be deployed, and the seconds that it took."""
        before = self._settings.clock()
        job = self._job
        model = build_tuned(job.model, job.workload, job.executed, self._student.frozen())
        found = compare(self._fp32, job.task.scores(model, SEARCH), SEARCH)
        return found, self._settings.clock() - before

    def _time_of_a_step(self) -> float:
        """Seconds of one step, after one that warms up; they change nothing that is trained."""
        seconds = 0.0
        batches = self._job.batches.epoch(torch.Generator().manual_seed(self._options.seed))
        for _, (inputs, labels) in zip(range(2), batches, strict=False):
            before = self._settings.clock()
            self._loss(inputs, labels).backward()  # type: ignore[no-untyped-call]
            seconds = self._settings.clock() - before
        self._optimizer.zero_grad(set_to_none=True)
        return seconds

    @property
    def _done(self) -> int:
        return self._at.epoch * len(self._job.batches) + self._at.step

    @property
    def _total(self) -> int:
        return self._options.epochs * len(self._job.batches)

    def _elapsed_s(self) -> float:
        return self._at.before_s + self._settings.clock() - self._began_s

    def _over(self) -> bool:
        limit = self._options.max_seconds
        return self._done >= self._total or (limit is not None and self._at.elapsed_s >= limit)

    def _left_s(self) -> float:
        """An estimate of what is left, from the steps and judgements so far."""
        steps = self._total - self._done
        left = steps * self._step_s + math.ceil(steps / len(self._job.batches)) * self._judge_s
        limit = self._options.max_seconds
        return left if limit is None else max(0.0, min(left, limit - self._at.elapsed_s + self._judge_s))

    def _rate(self) -> float:
        """The factor on the learning rate: a linear rise, then a cosine to zero, by steps or by time."""
        limit = self._options.max_seconds
        by_time = 0.0 if limit is None else self._elapsed_s() / limit * self._total
        step, rising = max(float(self._done), by_time), max(1.0, WARMUP * self._total)
        if step < rising:
            return min(1.0, (step + 1) / rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1.0, self._total - rising))))

    def _save(self) -> None:
        self._saved_s = self._settings.clock()
        at = replace(self._at, before_s=self._elapsed_s())
        progress = Progress(
            at, self._student.state_dict(), self._optimizer.state_dict()["state"], self._epoch_start, self._best
        )
        save_checkpoint(self._settings.checkpoint, self._settings.identity, progress)

    def _restore(self) -> None:
        """Go to where the checkpoint is, if there is one."""
        job = self._job
        found = load_checkpoint(self._settings.checkpoint, self._settings.identity, job.workload, job.executed)
        if found is None:
            return
        self._at, self._best, self._epoch_start = found.at, found.best, found.epoch_start
        self._student.load_state_dict(dict(found.student))
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": dict(found.optimizer), "param_groups": groups})


def check_options(options: TuneOptions) -> None:
    """Raise InputError on an option out of range."""
    limit = options.max_seconds
    for name, value, right, expected in (
        ("--epochs", options.epochs, options.epochs >= 1, "at least 1"),
        ("--learning-rate", options.learning_rate, 0 < options.learning_rate < 1, "between 0 and 1, such as 0.001"),
        ("--temperature", options.temperature, 0 < options.temperature < math.inf, "above 0"),
        ("--distillation", options.distillation, 0 <= options.distillation <= 1, "from 0 to 1"),
        ("--max-minutes", limit, limit is None or 0 < limit < math.inf, "above 0"),
    ):
        if not right:
            raise InputError("value out of range", where=name, got=value, expected=expected)
