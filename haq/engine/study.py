"""One target's Optuna study in memory: it proposes levels and learns from every candidate."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from haq.engine.samplers import POPULATION, REPLAYED, SAMPLERS, KnownSpace
from haq.space import SearchSpace

OBJECTIVES = ("size_bytes", "latency_ms", "drop_points")


@dataclass(frozen=True)
class Lesson:
    """What a target's study learns from one candidate.

    levels: one per group. values: as OBJECTIVES, minimized. constraints: limit -> relative excess, <= 0 when it holds.
    """

    levels: tuple[int, ...]
    values: tuple[float, float, float]
    constraints: Mapping[str, float]


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Parameter -> ordered levels, for the groups that have a choice (ordered integers search better than classes)."""
    return {f"bits/{g.name}": IntDistribution(0, len(g.bits) - 1) for g in space.groups if g.is_free}


def parameters(space: SearchSpace, levels: tuple[int, ...]) -> dict[str, int]:
    """Parameter -> level, for the groups that have a choice."""
    return {f"bits/{g.name}": level for g, level in zip(space.groups, levels, strict=True) if g.is_free}


def finished_trial(
    space: SearchSpace,
    known: Mapping[str, BaseDistribution],
    lesson: Lesson,
    *,
    user_attrs: Mapping[str, object] = MappingProxyType({}),
    system_attrs: Mapping[str, object] = MappingProxyType({}),
) -> FrozenTrial:
    """A complete trial that holds a lesson. known: the space's `distributions`."""
    return create_trial(
        state=TrialState.COMPLETE,
        values=lesson.values,
        params=parameters(space, lesson.levels),
        distributions=dict(known),
        constraints=dict(lesson.constraints),
        user_attrs=dict(user_attrs),
        system_attrs=dict(system_attrs),
    )


class TargetStudy:
    """One target's study. It changes because Optuna's studies do; the history can rebuild it at any time."""

    def __init__(self, space: SearchSpace, sampler: str, seed: int) -> None:
        self._space, self._sampler, self._seed = space, sampler, seed
        self._distributions = distributions(space)
        self._study = optuna.create_study(directions=["minimize"] * len(OBJECTIVES), sampler=SAMPLERS["random"](0, 0))
        self._pending: tuple[Trial, tuple[int, ...]] | None = None
        self._learned = 0

    def ask(self, number: int) -> tuple[int, ...]:
        """The sampler's proposal for the run's candidate `number`: one level per group."""
        self._study.sampler = KnownSpace(SAMPLERS[self._sampler](self._seed, number), self._distributions)
        trial = self._study.ask(self._distributions)
        chosen = trial.params
        levels = tuple(chosen.get(f"bits/{group.name}", 0) for group in self._space.groups)
        self._pending = (trial, levels)
        return levels

    def replay(self, number: int) -> None:
        """On resume, ask as then, where the sampler keeps state in the study."""
        if self._sampler in REPLAYED:
            self.ask(number)

    def learn(self, lesson: Lesson) -> None:
        """Tell the pending proposal, or add what another study, a seed or a replaced proposal brought."""
        pending, self._pending = self._pending, None
        if pending is not None and pending[1] == lesson.levels:
            # Constraints are set last: one that is set twice keeps its first value (Optuna 5).
            for name, excess in lesson.constraints.items():
                pending[0].set_constraint(name, excess)
            self._study.tell(pending[0], list(lesson.values))
        else:
            if pending is not None:
                self._study.tell(pending[0], state=TrialState.FAIL)
            attributes = self._generation()
            self._study.add_trial(finished_trial(self._space, self._distributions, lesson, system_attrs=attributes))
        self._learned += 1

    def _generation(self) -> dict[str, int]:
        """Genetic samplers count only trials with a generation: everything learned belongs to one, in order."""
        key = {"nsga2": "NSGAIISampler:generation", "nsga3": "NSGAIIISampler:generation"}.get(self._sampler)
        return {} if key is None else {key: self._learned // POPULATION}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's info log and without warnings about samplers that it calls experimental; restored afterwards."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
