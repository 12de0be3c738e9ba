"""Looks at a split part by part, hard samples first, and bounds the drop on the whole of it from what is measured.

A drop here is of one fixed split, so it is known exactly once all of it is measured, and a bound has two parts.

Hard samples: all of them up to some hardness are measured, in an order that FP32 alone decides, and what they lost or
gained is known, not estimated. Only a sample that FP32 gets wrong can be gained, so these come first; after them the
right ones by the margin of FP32's answer, as the answers with a small margin are those that change. From the moment
that the wrong ones are measured, the drop so far is a lower bound of the drop with no probability in it: this is what
tells drops apart that differ by a sample or two, which no random part of a split can do.

The others: a part of all samples that is drawn at random before. Those of it that are not hard are a simple random
sample of all that are not, so that exact hypergeometric bounds (Clopper and Pearson's way) hold for how many of them
changed, apart for those that FP32 gets right (they can only be lost) and wrong (only gained).

Several looks at a growing number share the error between them (Bonferroni). That the hard samples are another set at
each look does not matter: each look's interval is right by itself, given that the drawn samples were drawn at random,
independently of the candidate. An interval is about this split, not about the population that the split is from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]
"""Numbers of samples, from 0, in the order of the split."""

SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Shares of the samples after which one looks; few, since every look costs probability."""
FEWEST = 32
"""Samples at the first look: an interval of fewer says nothing."""
ERROR = 0.05
ORDER_SEED = 20
"""Of the samples drawn at random: the same for every candidate, so that candidates are compared on the same."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is measured so far.

    samples: (n,) numbers of samples, scores: (n,) theirs. is_hard: (n,) booleans; all that are not hard were drawn at
    random among the samples of the split that are not. of_samples: in the split. error: the probability with which each
    end of this look's interval may be wrong. is_continuous: zeros and ones among the scores are no counts.
    """

    samples: Numbers
    scores: Floats
    is_hard: NDArray[np.bool_]
    of_samples: int
    error: float
    is_continuous: bool = False

    @property
    def weights(self) -> Floats:
        """(n,) how many samples of the split each measured one stands for."""
        drawn = int((~self.is_hard).sum())
        others = self.of_samples - int(self.is_hard.sum())
        return np.where(self.is_hard, 1.0, others / drawn if drawn else 1.0)


Watch = Callable[[Look], bool]
"""Called after each look; whether enough is known, so that measuring can stop."""


@dataclass(frozen=True)
class Bounds:
    """The drop on the whole split, in points: an estimate without bias (kept within the bounds), and the bounds."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Plan:
    """In which order a split is measured, and when one looks.

    order: (N,) numbers of samples, the first `drawn` of them at random. hardness: (N,) the place of each sample among
    all by hardness, 0 is hardest; absent where samples are measured in random order throughout. ends: samples measured
    after each look, the last is N.
    """

    order: Numbers
    drawn: int
    hardness: Numbers | None
    ends: tuple[int, ...]

    @property
    def parts(self) -> tuple[Numbers, ...]:
        """The samples that each look adds."""
        return tuple(np.split(self.order, self.ends[:-1]))

    def look(self, number: int, scores: Floats, *, is_continuous: bool) -> Look:
        """Look `number`, from 0. scores: of the samples so far, in the plan's order."""
        samples = self.order[: self.ends[number]]
        is_hard = np.zeros(len(samples), dtype=np.bool_)
        if self.hardness is not None and len(samples) > self.drawn:
            # The last one measured for its hardness; drawn ones that are harder belong to the hard ones, too.
            is_hard = self.hardness[samples] <= self.hardness[samples[-1]]
        return Look(samples, scores, is_hard, len(self.order), self._error(number), is_continuous)

    def _error(self, number: int) -> float:
        """Half of ERROR for each end; the first look, where all rests on chance, gets half where the others do not."""
        looks = len(self.ends) - 1
        if self.hardness is None or looks == 1:
            return ERROR / 2 / looks
        return ERROR / 4 if number == 0 else ERROR / 4 / (looks - 1)


def plan(count: int, hardest_first: Numbers | None) -> Plan:
    """The plan for a split of `count` samples.

    hardest_first: (count,) all numbers of samples in that order, from FP32 alone; None for random order throughout.
    """
    ends = (*sorted({end for share in SHARES if FEWEST <= (end := max(FEWEST, round(share * count))) < count}), count)
    shuffled = np.random.default_rng(ORDER_SEED).permutation(count)
    if hardest_first is None:
        return Plan(shuffled, count, None, ends)
    drawn = ends[0]
    is_drawn = np.zeros(count, dtype=np.bool_)
    is_drawn[shuffled[:drawn]] = True
    hardness = np.empty(count, dtype=np.intp)
    hardness[hardest_first] = np.arange(count)
    order = np.concatenate([shuffled[:drawn], hardest_first[~is_drawn[hardest_first]]])
    return Plan(order, drawn, hardness, ends)


def hardest_first(right: NDArray[np.bool_], margins: Floats) -> Numbers:
    """(n,) numbers of samples: first those that FP32 gets wrong, then the others, each by margin, the smallest first.

    margins: (n,) how far FP32's answer is from another one; NaN (its outputs are not finite) counts as none at all.
    """
    return np.lexsort((np.nan_to_num(margins, nan=0.0), right))


def drop_bounds(fp32: Floats, look: Look, *, is_minimized: bool = False) -> Bounds:
    """The drop on the whole split in points, 100 x mean(FP32 - candidate), the other way round where minimized.

    fp32: (N,) FP32's scores of all samples, in the order of the split. Scores of 0 and 1 get exact bounds, others
    the normal interval with the correction for a finite population (Cochran, Sampling Techniques, 1977, 2.6), which is
    approximate; where few large scores make the mean, as in a divergence, its low end errs to the safe side.
    """
    sign = -1.0 if is_minimized else 1.0
    difference = sign * (fp32[look.samples] - look.scores)
    known = float(difference[look.is_hard].sum())
    both = np.concatenate([fp32, look.scores])
    if look.is_continuous or not np.isin(both, (0.0, 1.0)).all():
        rest = _mean_of_rest(difference[~look.is_hard], look)
    else:
        rest = _changes_of_rest(fp32 == (0.0 if is_minimized else 1.0), difference, look)
    points = [100 * (known + part) / look.of_samples for part in (rest.estimate, rest.low, rest.high)]
    return Bounds(*points)


def _changes_of_rest(can_lose: NDArray[np.bool_], difference: Floats, look: Look) -> Bounds:
    """Samples lost minus samples gained among those that are not hard."""
    total = Bounds(0.0, 0.0, 0.0)
    hard, rest = look.samples[look.is_hard], look.samples[~look.is_hard]
    changed = difference[~look.is_hard] != 0
    # The two intervals hold together, so each may err half as often.
    for are, signed in ((can_lose, 1), (~can_lose, -1)):
        size, drawn = int(are.sum() - are[hard].sum()), int(are[rest].sum())
        seen = int(changed[are[rest]].sum())
        low, high = changes(seen, drawn, size, look.error / 2)
        estimate = seen * size / drawn if drawn else 0.0
        ends = sorted((signed * low, signed * high))
        total = Bounds(total.estimate + signed * estimate, total.low + ends[0], total.high + ends[1])
    return total


def _mean_of_rest(drawn: Floats, look: Look) -> Bounds:
    """The sum of the differences of those that are not hard."""
    n, size = len(drawn), look.of_samples - int(look.is_hard.sum())
    if n == size:
        total = float(drawn.sum())
        return Bounds(total, total, total)
    if n < 2:
        return Bounds(size * float(drawn.mean()) if n else 0.0, -math.inf, math.inf)
    quantile = NormalDist().inv_cdf(1 - look.error)
    half = quantile * float(np.std(drawn, ddof=1)) * math.sqrt((1 - n / size) / n)
    mean = float(drawn.mean())
    return Bounds(size * mean, size * (mean - half), size * (mean + half))


def changes(seen: int, drawn: int, size: int, error: float) -> tuple[int, int]:
    """How many of `size` samples changed, at least and at most, when `seen` of `drawn` random ones did.

    Each bound is wrong with a probability of at most `error`: it is the furthest number that a one-sided hypergeometric
    test at that level does not reject. Both are exact when all were drawn.
    """
    return size - _most(drawn - seen, drawn, size, error), _most(seen, drawn, size, error)


def _most(seen: int, drawn: int, size: int, error: float) -> int:
    """The largest K for which at most `seen` of `drawn` out of `size` with K marked has a chance of `error` or more."""
    low, high = seen, size - (drawn - seen)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _chance_of_at_most(seen, drawn, middle, size) >= error else (low, middle - 1)
    return low


def _chance_of_at_most(seen: int, drawn: int, marked: int, size: int) -> float:
    """P(X <= seen) of the hypergeometric distribution."""
    k = np.arange(max(0, drawn - (size - marked)), min(seen, marked) + 1)
    log = _log_factorials(size)

    def log_choose(n: int | Numbers, of: Numbers) -> Floats:
        chosen: Floats = log[n] - log[of] - log[n - of]
        return chosen

    total = float(log[size] - log[drawn] - log[size - drawn])
    return float(np.exp(log_choose(marked, k) + log_choose(size - marked, drawn - k) - total).sum())


@cache
def _log_factorials(most: int) -> Floats:
    """(most + 1,) log n!."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
