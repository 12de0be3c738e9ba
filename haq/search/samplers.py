"""Optuna's samplers by name, each made anew for every trial so that a resumed run repeats an unbroken one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

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
    "tpe": _tpe,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "gp": _gp,
    "qmc": _qmc,
    "random": _random,
}
"""Name -> (run seed, candidate number) -> sampler. GP takes seconds per trial: meant for slow measurements."""

REPLAYED = frozenset({"nsga2", "nsga3", "qmc"})
"""Samplers that keep state in the study (parents, index): on resume their proposals are made again, in milliseconds."""
