"""Judges a model on a split: one forward pass, from which the metric that drives the search and all others are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from haq.accuracy import Failure, Reading, Scores
from haq.errors import InputError
from haq.nn.hardness import racing_plan
from haq.nn.metrics import METRICS, Metric, Outputs, all_scores, check_classification, not_finite, report
from haq.nn.task import CallableTask, HasOutputs, HasSamples, Task, as_scores
from haq.nn.user_metrics import UserMetric
from haq.quality import TOP1, Direction, Quality, QualityReport
from haq.racing import Plan, Watch

WHERE = "accuracy.metric"


@dataclass(frozen=True, eq=False)
class Driver:
    """What drives a search. metric: one of METRICS, or the user's; absent where the task measures by itself.

    key: which entry drives where the user's function returns a mapping, the first if absent. directions: of entries.
    """

    name: str
    direction: Direction
    metric: Metric | UserMetric | None = None
    key: str | None = None
    directions: Mapping[str, Direction] = field(default_factory=dict)

    @property
    def may_fail(self) -> bool:
        """Whether a candidate whose outputs are not finite has no value."""
        return isinstance(self.metric, UserMetric) or (self.metric is not None and self.metric.direction == "minimize")


def choose_driver(
    task: Task, user: UserMetric | None, name: str | None, direction: Direction | Mapping[str, Direction] | None
) -> Driver:
    """The metric that a spec asks of a task; raises InputError where the task has no such metric.

    user: loaded from `name`, where that names code. direction: as the spec states it, for the metric or by name.
    """
    shows = isinstance(task, HasOutputs)
    if user is not None and not shows:
        raise InputError(
            "the task measures by itself, so it takes no metric of the user's",
            where=WHERE,
            got=name,
            expected=task.metric,
        )
    chosen, key, own = _chosen(task, user, name, shows=shows)
    called = name if name is not None else task.metric
    return Driver(
        called, _direction(called, own, direction), chosen, key, direction if isinstance(direction, Mapping) else {}
    )


class Judge:
    """Measures models of one task. It changes: FP32's outputs are kept per split, so that it runs once on each."""

    def __init__(self, task: Task, driver: Driver, fp32: Callable[[], nn.Module]) -> None:
        """fp32: builds the model that others are compared with, when it is needed."""
        self._task, self._driver, self._fp32 = task, driver, fp32
        self._kept: dict[str, Outputs] = {}
        self._plans: dict[str, Plan] = {}

    def __call__(self, model: nn.Module, split: str, *, is_fp32: bool = False) -> Reading | Failure:
        """The model's reading; a failure where the driving metric is undefined because outputs are not finite."""
        task, driver = self._task, self._driver
        if isinstance(task, CallableTask):
            return _reading(task.answer(model, split), driver, split, "the evaluate function")
        if driver.metric is None:
            return Reading(task.scores(model, split))
        assert isinstance(task, HasOutputs), "choose_driver gives a metric to tasks with outputs only"
        outputs = task.outputs(model, split)
        if isinstance(driver.metric, Metric):
            check_classification(outputs, split)
        scores: dict[str, Scores] = {}
        quality = None
        if outputs.is_classification:
            scores, quality = self._qualities(outputs, self._reference(outputs if is_fp32 else None, split))
        if isinstance(driver.metric, Metric):
            return _whole(scores[driver.metric.name], driver, outputs, quality)
        if (broken := not_finite(outputs)).any():
            return _failure(driver, int(broken.sum()), len(broken))
        found = _reading(driver.metric.value(outputs), driver, split, driver.name)
        return replace(found, report=_joined(quality, found.report))

    @property
    def can_race(self) -> bool:
        """Whether a split can be measured part by part: its task answers for samples, and the metric is haq's own."""
        return isinstance(self._driver.metric, Metric) and isinstance(self._task, HasSamples)

    def race(self, model: nn.Module, split: str, watch: Watch) -> Reading | Failure:
        """The model's reading, look by look until `watch` has seen enough: it then holds the look, and estimates.

        A failure as soon as the driving metric is undefined for a sample.
        """
        task, metric, fp32 = self._task, self._driver.metric, self._reference(None, split)
        assert isinstance(task, HasSamples), "asked of a judge that can race"
        assert isinstance(metric, Metric), "asked of a judge that can race"
        if split not in self._plans:
            self._plans[split] = racing_plan(metric, fp32)
        plan, found = self._plans[split], []
        for number, part in enumerate(plan.parts[:-1]):
            found.append(task.outputs_of(model, split, part))
            so_far, samples = _joined_outputs(found), plan.order[: plan.ends[number]]
            check_classification(so_far, split)
            reference = fp32.taken(samples)
            scores = metric.function(so_far, reference)
            if (undefined := np.isnan(scores)).any():
                return _failure(self._driver, int(undefined.sum()), len(scores))
            look = plan.look(number, scores, is_continuous=metric.direction == "minimize")
            if watch(look):
                _, quality = self._qualities(so_far, reference, look.weights)
                return Reading(scores, quality, is_continuous=look.is_continuous, look=look)
        found.append(task.outputs_of(model, split, plan.parts[-1]))
        outputs = _joined_outputs(found).taken(np.argsort(plan.order))
        check_classification(outputs, split)
        every, quality = self._qualities(outputs, fp32)
        return _whole(every[metric.name], self._driver, outputs, quality)

    def _qualities(
        self, outputs: Outputs, fp32: Outputs, weights: Scores | None = None
    ) -> tuple[dict[str, Scores], QualityReport]:
        """All of METRICS per sample, and the report on them without the one that drives the search."""
        scores = all_scores(outputs, fp32)
        quality = report(scores, outputs, fp32, weights)
        if self._driver.metric is METRICS[TOP1]:
            quality = replace(quality, figures=tuple(f for f in quality.figures if f.name != TOP1))
        return scores, quality

    def _reference(self, outputs: Outputs | None, split: str) -> Outputs:
        """FP32's outputs on the split: those given, those kept, or else those of a pass now."""
        if outputs is not None:
            self._kept[split] = outputs
        elif split not in self._kept:
            assert isinstance(self._task, HasOutputs)
            self._kept[split] = self._task.outputs(self._fp32(), split)
        return self._kept[split]


def _chosen(
    task: Task, user: UserMetric | None, name: str | None, *, shows: bool
) -> tuple[Metric | UserMetric | None, str | None, Direction | None]:
    """The metric, the entry of a mapping, and the direction that the metric has by itself."""
    if user is not None:
        return user, None, user.direction
    if name is None or name == task.metric:
        metric = METRICS.get(task.metric, METRICS[TOP1]) if shows else None
        return metric, None, metric.direction if metric else None
    if shows and name in METRICS:
        return METRICS[name], None, METRICS[name].direction
    if isinstance(task, CallableTask):
        return None, name, None
    own = [task.metric] if task.metric not in METRICS or not shows else []
    expected = ", ".join([*own, *METRICS, "or package.module:metric"]) if shows else task.metric
    raise InputError("the task measures something else", where=WHERE, got=name, expected=expected)


def _direction(name: str, own: Direction | None, stated: Direction | Mapping[str, Direction] | None) -> Direction:
    """The metric's own direction, or the stated one; raises InputError where they differ."""
    if isinstance(stated, Mapping):
        if name not in stated and own is None:
            raise InputError(
                "the table leaves out the metric that drives the search", where="accuracy.direction",
                got=", ".join(stated), expected=f"also {name} = maximize or minimize", way_out="or set accuracy.metric",
            )  # fmt: skip
        stated = stated.get(name)
    if own is not None and stated is not None and own != stated:
        raise InputError(
            f"the metric {name!r} has its own direction", where="accuracy.direction", got=stated, expected=own
        )
    return own or stated or "maximize"


def _joined_outputs(found: Sequence[Outputs]) -> Outputs:
    return Outputs(
        tuple(part for outputs in found for part in outputs.parts),
        tuple(labels for outputs in found for labels in outputs.labels),
        found[0].class_names,
    )


def _whole(scores: Scores, driver: Driver, outputs: Outputs, quality: QualityReport | None) -> Reading | Failure:
    """The reading of one of METRICS, unless it is undefined for some samples."""
    if (undefined := np.isnan(scores)).any():
        return _failure(driver, int(undefined.sum()), len(scores))
    return Reading(scores, quality, is_continuous=driver.direction == "minimize")


def _failure(driver: Driver, count: int, samples: int) -> Failure:
    return Failure(f"{driver.name} is unknown: the outputs of {count:,} of {samples:,} samples are not finite", samples)


def _reading(raw: object, driver: Driver, split: str, whose: str) -> Reading:
    """What the user's function returned: a number, per-sample scores, or a mapping whose other entries are recorded."""
    if not isinstance(raw, Mapping):
        if driver.key is not None:
            raise InputError(
                "the evaluate function returns one metric without a name", where=WHERE, got=driver.key,
                expected="a function that returns a mapping with this name", way_out="or leave the metric out",
            )  # fmt: skip
        return Reading(as_scores(raw, whose, split))
    main = driver.key if driver.key is not None else next(iter(raw), None)
    if main is None or main not in raw or not all(isinstance(name, str) for name in raw):
        raise InputError(
            f"{whose} returned a mapping without the metric that drives the search", where=f"split {split!r}",
            got=", ".join(map(str, raw)) or "nothing", expected=f"an entry {main!r}" if main else "at least one entry",
        )  # fmt: skip
    others = tuple(
        Quality(name, _other_direction(name, driver), _mean(as_scores(value, whose, split)))
        for name, value in raw.items()
        if name != main
    )
    return Reading(as_scores(raw[main], whose, split), QualityReport(others) if others else None, main)


def _other_direction(name: str, driver: Driver) -> Direction:
    """As the spec's table says, else as haq's own metric of this name, else the default."""
    known = METRICS.get(name)
    return driver.directions.get(name, known.direction if known else "maximize")


def _mean(scores: Scores | float) -> float | None:
    """The mean; unknown where it is not a finite number."""
    mean = float(np.mean(scores)) if np.size(scores) else np.nan
    return mean if np.isfinite(mean) else None


def _joined(first: QualityReport | None, second: QualityReport | None) -> QualityReport | None:
    """Both reports as one; of two figures of one name the user's stays."""
    if first is None or second is None:
        return first or second
    names = {figure.name for figure in second.figures}
    return replace(first, figures=(*(f for f in first.figures if f.name not in names), *second.figures))
