"""Turns a bundle into what a search needs: the folded model's workload, and accuracy as a function of an assignment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haq import diskcache
from haq.accuracy import Failure, Reading
from haq.errors import InputError
from haq.history import SEARCH, VALIDATION
from haq.nn.bundle import Bundle
from haq.nn.calibrate import calibrate, check_data
from haq.nn.checkpoints import weights_hash
from haq.nn.effects import Recipe, kept_effects
from haq.nn.fold import fold_batch_norm
from haq.nn.judge import Driver, Judge
from haq.nn.observers import DEFAULT_OBSERVER
from haq.nn.ptq.structure import restructured
from haq.nn.sensitivity import SAMPLES, Progress, Sample, measure_sensitivity
from haq.nn.simulate import Simulator
from haq.nn.subset import cut_search_split, spread_rows
from haq.nn.task import CallableTask, HasCalibrationLabels, HasOutputs, Inputs, Task, first_samples, forward, logits_of
from haq.nn.trace import trace
from haq.precision import FP32, Assignment
from haq.racing import Watch
from haq.sensitivity import Kind, Sensitivity
from haq.techniques import DEFAULT, Stack
from haq.workload import Workload


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network ready to be searched.

    measure: (executed, split) -> reading, for each split in `splits`; provenance: plain data that identifies the input.
    sensitivity: (pieces in depth order, most pairs, progress) -> their effects on calibration data.
    race: (executed, watch) -> reading of the search split that may be stopped early; absent where that is not possible.
    """

    workload: Workload
    measure: Callable[[Assignment, str], Reading | Failure]
    sensitivity: Callable[[Sequence[Assignment], int, Progress], Sensitivity]
    splits: tuple[str, ...]
    provenance: dict[str, Any]
    race: Callable[[Assignment, Watch], Reading | Failure] | None = None


@dataclass(frozen=True)
class Quantization:
    """How a network is quantized: the techniques, the observer of activations, and where quantized layers are kept.

    folder: None for memory.
    """

    stack: Stack = DEFAULT
    observer: str = DEFAULT_OBSERVER
    folder: Path | None = None


class _Measure:
    """Scores assignments. It changes when it is first used: calibration waits until something is measured.

    A resumed run that has nothing left to measure is never calibrated.
    """

    def __init__(self, model: nn.Module, workload: Workload, task: Task, how: Quantization, driver: Driver) -> None:
        self._model, self._workload, self._task, self._how = model, workload, task, how
        self._judge = Judge(task, driver, self._fp32)
        self._simulator: Simulator | None = None

    def __call__(self, executed: Assignment, split: str) -> Reading | Failure:
        is_fp32 = all(executed.precision(layer) == FP32 for layer in executed)
        return self._judge(self._build(executed), split, is_fp32=is_fp32)

    def sensitivity(self, pieces: Sequence[Assignment], pairs: int, progress: Progress) -> Sensitivity:
        """The effects of pieces and of pairs of them on SAMPLES samples of the calibration data, kept in the cache."""
        return calibration_sensitivity(
            Calibrating(self._task, self._model, self._workload, self._how), self._build, pieces, pairs, progress
        )

    @property
    def can_race(self) -> bool:
        return self._judge.can_race

    def race(self, executed: Assignment, watch: Watch) -> Reading | Failure:
        """The reading of the search split, which `watch` may stop early."""
        return self._judge.race(self._build(executed), SEARCH, watch)

    def _build(self, executed: Assignment) -> nn.Module:
        if self._simulator is None:
            batches = tuple(self._task.calibration())
            self._simulator = quantizable(self._model, self._workload, batches, self._how)
        return self._simulator.build(executed)

    def _fp32(self) -> nn.Module:
        """The model that FP32 is measured with: techniques may have restructured it, which changes its last digits."""
        return self._build(Assignment.uniform(self._workload.layer_names, FP32))


@dataclass(frozen=True, eq=False)
class Calibrating:
    """A network with the data that it is calibrated on. model: FP32, folded."""

    task: Task
    model: nn.Module
    workload: Workload
    how: Quantization


def calibration_sensitivity(
    of: Calibrating,
    build: Callable[[Assignment], nn.Module],
    pieces: Sequence[Assignment],
    pairs: int,
    progress: Progress,
) -> Sensitivity:
    """The effects of pieces and of pairs of them on SAMPLES samples of the calibration data, kept in the cache.

    build: makes the model in executed precisions.
    """
    task, batches = of.task, tuple(of.task.calibration())
    labels = task.calibration_labels if isinstance(task, HasCalibrationLabels) else ()
    sample = Sample(*spread_rows(batches, labels, SAMPLES, SAMPLES))
    measure: Kind = "kl" if isinstance(task, HasOutputs) and _gives_logits(of.model, sample) else "relative error"
    recipe = Recipe(of.model, batches, of.how.stack, of.how.observer, sample.batches, sample.labels, measure)
    kept = kept_effects(recipe)
    found = measure_sensitivity(
        build, of.workload, sample, pieces, pairs, measure=measure, kept=kept, progress=progress
    )
    diskcache.trim()
    return found


def _gives_logits(model: nn.Module, sample: Sample) -> bool:
    """Whether the model answers with one score per class and sample."""
    with torch.inference_mode():
        output = forward(model, first_samples(sample.batches[0], 1))
    try:
        return logits_of(output).dim() == 2
    except InputError:
        return False


def quantizable(model: nn.Module, workload: Workload, batches: tuple[Inputs, ...], how: Quantization) -> Simulator:
    """The folded model, restructured and calibrated as `how` says, ready to be built in any precisions.

    Raises InputError as `calibrate` does, on calibration data that cannot be used.
    """
    check_data(batches, workload)
    changed = restructured(model, workload, how.stack, batches)
    calibration = calibrate(changed, workload, batches, observer=how.observer, stack=how.stack)
    return Simulator(changed, workload, calibration, how.folder, in_place=True)


def prepare(bundle: Bundle, *, how: Quantization, samples: int | None, driver: Driver) -> Prepared:
    """The bundle, folded and traced, measured by the driver that was chosen for its task."""
    task = bundle.task
    assert task is not None, "a bundle without a task cannot be searched"
    if samples is not None:
        task = cut_search_split(task, samples)
    folded = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(folded, bundle.example, name=bundle.name)
    provenance = {
        "model": bundle.name,
        "weights_hash": bundle.weights_hash,
        "data_hash": bundle.data_hash,
        "metric": driver.name,
        # Left out where it is the default, so that runs of before these keys are still the same search.
        **({"direction": driver.direction} if driver.direction == "minimize" else {}),
        **({"metric_hash": bundle.metric.source_hash} if bundle.metric and bundle.metric.source_hash else {}),
    }
    # A user's function that knows one data set has nothing to validate on.
    held_out = not isinstance(task, CallableTask) or task.validate is not None
    splits = (SEARCH, VALIDATION) if held_out else (SEARCH,)
    measure = _Measure(folded, workload, task, how, driver)
    race = measure.race if measure.can_race else None
    return Prepared(workload, measure, measure.sensitivity, splits, provenance, race)


def bundle_in_memory(
    model: nn.Module,
    calibration: Iterable[Inputs],
    evaluate: Callable[[nn.Module], object] | Task,
    validate: Callable[[nn.Module], object] | None,
) -> Bundle:
    """The user's own model and measure as a bundle; raises InputError when there is no calibration data."""
    batches = tuple(calibration)
    if not batches:
        raise InputError(
            "no calibration data", where="calibration", got="0 batches", expected="at least one batch of inputs"
        )
    task: Task = evaluate if hasattr(evaluate, "scores") else CallableTask(evaluate, batches, validate)  # type: ignore[assignment]
    first = batches[0]
    example: Inputs = (
        {name: tensor[:1] for name, tensor in first.items()}
        if isinstance(first, dict)
        else tuple(tensor[:1] for tensor in first)
    )
    return Bundle(type(model).__name__, model, example, task, weights_hash(model), task.data_hash)
