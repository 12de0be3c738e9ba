"""Says when a candidate is of no use on a target any more, so that measuring it can stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from haq.accuracy import Failure, Measurement, Scores
from haq.candidate import Candidate, TargetResult
from haq.engine.problem import Target
from haq.quality import Direction
from haq.racing import Look, Watch, drop_bounds

ROUNDING_POINTS = 1e-9
"""Drops that differ by less are equal: they are differences of means, whose last digit depends on the order."""


@dataclass(frozen=True)
class Bar:
    """The drop that a candidate has to stay under on one target. by: the candidate that sets it; absent for a limit.

    is_met_by_equal: whether a drop of exactly `points` is still of use.
    """

    points: float
    by: int | None = None
    is_met_by_equal: bool = True

    def rules_out(self, low_points: float) -> bool:
        """Whether a drop of at least `low_points` is of no use."""
        slack = ROUNDING_POINTS if self.is_met_by_equal else -ROUNDING_POINTS
        return low_points > self.points + slack


class Rivals:
    """What candidates have to beat on one target; it grows with every candidate."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._numbers: list[int] = []
        self._figures = np.empty((64, 3))

    def add(self, candidate: Candidate) -> None:
        """Count it, if it is feasible and measured in full."""
        result = candidate.on(self._target.name)
        if not result.is_feasible or result.measurement is None or result.measurement.is_partial:
            return
        count = len(self._numbers)
        if count == len(self._figures):
            self._figures = np.concatenate([self._figures, np.empty_like(self._figures)])
        costs = result.costs["size_bytes"], result.costs["latency_ms"]
        self._figures[count] = (*costs, result.measurement.drop_points)
        self._numbers.append(candidate.number)

    def bar(self, priced: TargetResult) -> Bar | None:
        """The lowest bar for a priced candidate; None where any drop could be of use.

        It is the largest allowed drop, or that of an earlier candidate that is no larger and no slower: whoever drops
        more is on no front. The bar of a known execution never rises, as candidates only come in.
        """
        limit = self._target.constraints.max_drop_points
        allowed = None if limit is None else Bar(limit)
        figures = self._figures[: len(self._numbers)]
        costs = np.array([priced.costs["size_bytes"], priced.costs["latency_ms"]])
        rivals = np.flatnonzero((figures[:, :2] <= costs).all(axis=1))
        if not len(rivals):
            return allowed
        drops = figures[rivals, 2]
        lowest = rivals[drops == drops.min()]
        alike = (figures[lowest, :2] == costs).all(axis=1)
        # The earliest of those whose equal is of no use, else the earliest.
        first = int(alike.argmin())
        found = Bar(float(drops.min()), self._numbers[lowest[first]], bool(alike[first]))
        is_lower = allowed is None or (found.points, found.is_met_by_equal) < (allowed.points, True)
        return found if is_lower else allowed


@dataclass(frozen=True)
class Bars:
    """A priced candidate's bars. by_target: on every target. by_signature: on all targets that execute it so, and where
    it is feasible by cost: what is of no use on one may be of use on another.
    """

    by_target: Mapping[str, Bar | None]
    by_signature: Mapping[str, tuple[Bar | None, ...]]

    def are_open(self, signature: str, known: Measurement | Failure | None) -> bool:
        """Whether it has to be measured: it never was, or it was stopped by bars that were lower than these."""
        if known is None:
            return True
        if isinstance(known, Failure) or not known.is_partial or known.drop_interval is None:
            return False
        low = known.drop_interval.low
        return not all(bar is not None and bar.rules_out(low) for bar in self.by_signature[signature])

    def watch(self, signature: str, fp32: Scores | float, direction: Direction) -> Watch | None:
        """Stops a measurement when every bar rules it out; None where one never can.

        fp32: its scores on the search split, which takes scores per sample.
        """
        bars = [bar for bar in self.by_signature[signature] if bar is not None]
        if isinstance(fp32, float) or len(bars) < len(self.by_signature[signature]):
            return None

        def is_enough(look: Look) -> bool:
            low = drop_bounds(fp32, look, is_minimized=direction == "minimize").low
            return all(bar.rules_out(low) for bar in bars)

        return is_enough

    def stopped(self, priced: TargetResult, measurement: Measurement) -> TargetResult:
        """The result on one target of a measurement that was stopped early, and why it is no feasible one."""
        bar, drop = self.by_target[priced.target], measurement.drop_interval
        if not priced.is_feasible:
            return replace(priced, measurement=measurement)
        assert bar is not None, "only what a bar rules out is stopped"
        assert drop is not None, "what is stopped has an interval"
        why = f"more than the limit of {bar.points:g}" if bar.by is None else f"beaten by candidate {bar.by}"
        sentence = (
            f"stopped after {measurement.samples:,} of {measurement.of_samples:,} samples: "
            f"the drop is at least {drop.low:.3g} points (95 %), {why}"
        )
        return replace(priced, measurement=measurement, violations=(sentence,))


def bars_of(rivals: Sequence[Rivals], priced: Sequence[TargetResult]) -> Bars:
    """The bars of a candidate that is priced on every target."""
    by_target = {result.target: known.bar(result) for known, result in zip(rivals, priced, strict=True)}
    by_signature: dict[str, tuple[Bar | None, ...]] = {}
    for result in priced:
        if result.is_feasible:
            signature = result.executed.signature
            by_signature[signature] = (*by_signature.get(signature, ()), by_target[result.target])
    return Bars(by_target, by_signature)
