"""Optuna's samplers by name, each made anew for every trial so that a resumed run repeats an unbroken one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

POPULATION = 20
"""Optuna's default of 50 leaves ten generations in 500 trials; 20 found better fronts there (seeded, 50 layers)."""


def trial_seed(seed: int, number: int) -> int:
    """An independent 32-bit seed for one candidate of a run."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _tpe(seed: int, number: int) -> BaseSampler:
    # Multivariate is not Optuna's default with several objectives, but twice as fast and as good on ordered levels.
    return TPESampler(multivariate=True, seed=trial_seed(seed, number))


def _nsga2(seed: int, number: int) -> BaseSampler:
    return NSGAIISampler(population_size=POPULATION, seed=trial_seed(seed, number))


def _nsga3(seed: int, number: int) -> BaseSampler:
    return NSGAIIISampler(population_size=POPULATION, seed=trial_seed(seed, number))


def _gp(seed: int, number: int) -> BaseSampler:
    return GPSampler(deterministic_objective=True, seed=trial_seed(seed, number))


def _qmc(seed: int, number: int) -> BaseSampler:
    # One sequence for the whole run: the seed must not change, Optuna counts the index in the study.
    return QMCSampler(scramble=True, seed=trial_seed(seed, 0))


def _random(seed: int, number: int) -> BaseSampler:
    return RandomSampler(seed=trial_seed(seed, number))


SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "haq": _tpe,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "gp": _gp,
    "qmc": _qmc,
    "random": _random,
}
"""Name -> (run seed, candidate number) -> sampler. `haq` asks its guide first and fills the rest with TPE. GP takes
seconds per trial: meant for slow measurements."""


GUIDED: Mapping[str, str] = {"haq": "tpe"}
"""Samplers that follow the guide, and the Optuna sampler that fills the rest."""


class KnownSpace(BaseSampler):
    """A sampler that is told the search space, instead of comparing all trials' distributions for every proposal."""

    def __init__(self, sampler: BaseSampler, space: Mapping[str, BaseDistribution]) -> None:
        self._sampler, self._known = sampler, dict(space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._known

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)


REPLAYED = frozenset({"nsga2", "nsga3", "qmc"})
"""Samplers that keep state in the study (parents, index): on resume their proposals are made again, in milliseconds."""
