"""Do the effects of two pieces add up? Which pairs to measure, and how well their sums predict what they did."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from haq.precision import Assignment
from haq.sensitivity import Effect, Sensitivity

LEAST_CORRELATION = 0.8
RATIOS = (0.5, 2.0)
LEAST_PAIRS = 5
"""Fewer say nothing about a rank correlation: of four random orders one in 24 is right by luck."""
NOTICEABLE = 1e-3
"""Of the largest effect: what lies below adds nothing to any sum that matters."""


@dataclass(frozen=True)
class Additivity:
    """How well the sum of two effects predicts the effect of both.

    rank_correlation: Spearman's, of sums and measured divergences; absent where there are too few pairs or all are
    alike. ratio: the median of measured / sum; absent without a finite sum. pairs: how many were measured.
    """

    rank_correlation: float | None
    pairs: int
    ratio: float | None

    @property
    def warning(self) -> str | None:
        """Why sums should not be trusted; None where they may be."""
        if self.rank_correlation is None or self.ratio is None:
            return f"whether the effects of layers add up is unknown: {self.pairs} pairs measured"
        said = []
        if self.rank_correlation < LEAST_CORRELATION:
            said.append(f"the rank correlation is {self.rank_correlation:.2f} (at least {LEAST_CORRELATION} expected)")
        if not RATIOS[0] <= self.ratio <= RATIOS[1]:
            said.append(f"together they do {self.ratio:.2g} times their sum ({RATIOS[0]} to {RATIOS[1]:g} expected)")
        return f"the effects of layers do not add up: over {self.pairs} pairs {', '.join(said)}" if said else None


def additivity(sensitivity: Sensitivity) -> Additivity:
    """How well sums predict the pairs that were measured."""
    sums, measured = [], []
    for pair in sensitivity.pairs:
        parts = sensitivity.of(pair.first), sensitivity.of(pair.second)
        assert parts[0] is not None, "pairs are made of measured pieces"
        assert parts[1] is not None, "pairs are made of measured pieces"
        sums.append(parts[0] + parts[1])
        measured.append(pair.effect.divergence)
    ratios = [m / s for m, s in zip(measured, sums, strict=True) if 0 < s < math.inf]
    return Additivity(_rank_correlation(sums, measured), len(sums), float(np.median(ratios)) if ratios else None)


def _rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(x) < LEAST_PAIRS:
        return None
    # Loading it takes a second, which every search would pay at its start.
    from scipy.stats import ConstantInputWarning, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        found = float(spearmanr(x, y).statistic)
    return None if math.isnan(found) else found


def sample_pairs(
    effects: Mapping[Assignment, Effect], count: int, seed: int
) -> tuple[tuple[Assignment, Assignment], ...]:
    """At most `count` pairs of pieces that share no layer, each pair once, spread over the range of effects.

    effects: in depth order. The first of a pair is taken at even steps through the noticeable finite effects in order
    of size. The second is of about the same size, since beside a much larger one it would not show: in turn from the
    group next in depth, and at random from anywhere else.
    """
    largest = max((e.divergence for e in effects.values() if e.divergence < math.inf), default=0.0)
    # The least share of a denormal number is 0, which is nothing to notice.
    least = max(NOTICEABLE * largest, math.ulp(0.0))
    usable = [piece for piece, e in effects.items() if least <= e.divergence < math.inf]
    by_size = sorted(usable, key=lambda piece: effects[piece].divergence)
    depth = {layers: place for place, layers in enumerate(dict.fromkeys(frozenset(piece) for piece in usable))}
    generator = np.random.default_rng(seed)
    found: dict[frozenset[Assignment], tuple[Assignment, Assignment]] = {}
    for number in range(count):
        first = by_size[(2 * number + 1) * len(by_size) // (2 * count)] if by_size else None
        others = [
            piece
            for piece in usable
            if first is not None and not set(piece) & set(first) and frozenset((first, piece)) not in found
        ]
        if first is None or not others:
            continue
        if number % 2 == 0:
            nearest = min(abs(depth[frozenset(p)] - depth[frozenset(first)]) for p in others)
            others = [p for p in others if abs(depth[frozenset(p)] - depth[frozenset(first)]) == nearest]
        size = effects[first].divergence
        others.sort(key=lambda piece: abs(math.log(effects[piece].divergence / size)))
        alike = others[: 1 if number % 2 == 0 else max(1, len(others) // 4)]
        second = alike[int(generator.integers(len(alike)))]
        found[frozenset((first, second))] = (first, second)
    return tuple(found.values())
