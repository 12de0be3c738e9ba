"""Turns a bundle into what a search needs: the folded model's workload, and accuracy as a function of an assignment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.accuracy import Failure, Reading
from haq.errors import InputError
from haq.history import SEARCH, VALIDATION
from haq.nn.bundle import Bundle
from haq.nn.calibrate import calibrate
from haq.nn.checkpoints import weights_hash
from haq.nn.fold import fold_batch_norm
from haq.nn.judge import Driver, Judge
from haq.nn.simulate import FP32, Simulator
from haq.nn.subset import cut_search_split
from haq.nn.task import CallableTask, Inputs, Task
from haq.nn.trace import trace
from haq.precision import Assignment
from haq.workload import Workload


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network ready to be searched.

    measure: (executed, split) -> reading, for each split in `splits`; provenance: plain data that identifies the input.
    """

    workload: Workload
    measure: Callable[[Assignment, str], Reading | Failure]
    splits: tuple[str, ...]
    provenance: dict[str, Any]


class _Measure:
    """Scores assignments. It changes when it is first used: calibration waits until something is measured.

    A resumed run that has nothing left to measure is never calibrated.
    """

    def __init__(self, model: nn.Module, workload: Workload, task: Task, observer: str, driver: Driver) -> None:
        self._model, self._workload, self._task, self._observer = model, workload, task, observer
        self._judge = Judge(task, driver, model)
        self._simulator: Simulator | None = None

    def __call__(self, executed: Assignment, split: str) -> Reading | Failure:
        if self._simulator is None:
            calibration = calibrate(self._model, self._workload, self._task.calibration(), observer=self._observer)
            self._simulator = Simulator(self._model, self._workload, calibration)
        is_fp32 = all(executed.precision(layer) == FP32 for layer in executed)
        return self._judge(self._simulator.build(executed), split, is_fp32=is_fp32)


def prepare(bundle: Bundle, *, observer: str, samples: int | None, driver: Driver) -> Prepared:
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
    return Prepared(workload, _Measure(folded, workload, task, observer, driver), splits, provenance)


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
