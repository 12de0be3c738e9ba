"""Times calls: warmed up, in rounds over all of them so that a drift hits all alike, as medians with their noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from haq.errors import InputError

Call = Callable[[], float | None]
"""Runs once; returns the seconds that it took where the device knows them better than a clock beside it."""

Clock = Callable[[], float]
"""Seconds from any start."""

MIN_REPEATS = 3
"""Timed calls per visit, however long one takes."""

WARM_UP_S = 0.004
"""A visit begins with calls that are not timed, at least one: another model's threads may still spin for their work."""

MOST_REPEATS = 200
"""Timed calls per visit: a median of more gains nothing."""


@dataclass(frozen=True)
class Timing:
    """median_s: of the calls of the quietest round. noise: their interquartile range over it. repeats: how many.

    Whatever else a machine does makes a call slower, never faster: of several rounds the one with the least median was
    disturbed least.
    """

    median_s: float
    noise: float
    repeats: int

    @property
    def error_s(self) -> float:
        """One deviation of the median: 1.2533 sigma / sqrt(n), sigma being the interquartile range over 1.349."""
        return 1.2533 * self.noise * self.median_s / 1.349 / math.sqrt(self.repeats)


def summarize(rounds_s: Sequence[Sequence[float]]) -> Timing:
    """The timing of calls that took so many seconds in each round."""
    medians = [float(np.median(calls)) for calls in rounds_s]
    quietest = rounds_s[medians.index(min(medians))]
    low, middle, high = np.quantile(quietest, (0.25, 0.5, 0.75)).tolist()
    return Timing(middle, (high - low) / middle, len(quietest))


@dataclass(frozen=True)
class Effort:
    """How long to time. seconds: for one call over all rounds, warm-up apart; it is called MIN_REPEATS times a round
    even so."""

    seconds: float
    rounds: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.seconds <= 0:
            raise InputError(
                "too little to time", got=f"{self.seconds:g} s in {self.rounds} rounds", expected="a positive time"
            )


def time_all(calls: Sequence[Call], effort: Effort, clock: Clock = time.perf_counter) -> list[Timing]:
    """The timing of every call, in order."""
    return [summarize(rounds) for rounds in sample_all(calls, effort, clock)]


def sample_all(calls: Sequence[Call], effort: Effort, clock: Clock = time.perf_counter) -> list[list[list[float]]]:
    """Seconds per call, for every call and round: each round visits each call once."""
    samples: list[list[list[float]]] = [[] for _ in calls]
    for _ in range(effort.rounds):
        for call, rounds in zip(calls, samples, strict=True):
            rounds.append(visit(call, effort.seconds / effort.rounds, clock))
    return samples


def visit(call: Call, seconds: float, clock: Clock) -> list[float]:
    """Timed calls that take about so long together, after the warm-up."""
    started = clock()
    while True:
        call()
        if clock() - started >= WARM_UP_S:
            break
    found: list[float] = []
    started = last = clock()
    while len(found) < MIN_REPEATS or (last - started < seconds and len(found) < MOST_REPEATS):
        spent = call()
        now = clock()
        found.append(now - last if spent is None else spent)
        last = now
    return found
