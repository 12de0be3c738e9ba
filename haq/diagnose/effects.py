"""What a change regains, from the answers before and after it on the same samples."""

from __future__ import annotations

import math

import numpy as np

from haq.accuracy import Z95, Interval, paired_drop_interval
from haq.diagnose.finding import Effect, Floats, Outcome

FLOOR_NATS = 0.005
"""The least divergence that counts as harm: at a typical margin it changes about one answer in a thousand."""

CAP_NATS = 20.0
"""What an answer that is no number is taken to diverge by, so that means exist: e^-20 is no chance at all."""


def regained(before: Outcome, after: Outcome) -> Effect:
    """The effect of the change from one to the other, positive where it helps, with paired 95 % intervals.

    nats: normal interval of the mean of the differences, answers that are no numbers counted as CAP_NATS.
    """
    points = 100 * (after.value - before.value)
    points_interval = None
    if before.scores is not None and after.scores is not None:
        points_interval = paired_drop_interval(after.scores, before.scores)
    if before.kl is None or after.kl is None:
        samples = 0 if before.scores is None else len(before.scores)
        return Effect(points=points, points_interval=points_interval, samples=samples)
    difference = _capped(before.kl) - _capped(after.kl)
    mean, half = float(difference.mean()), math.inf
    if len(difference) > 1:
        half = Z95 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return Effect(points, points_interval, mean, Interval(mean - half, mean + half), samples=len(difference))


def is_measured(effect: Effect, floor_nats: float = FLOOR_NATS) -> bool:
    """Whether the effect is there beyond its interval, and large enough to matter; unknown is no.

    By divergence where the task shows logits, since it sees what few answers show; by points elsewhere.
    """
    if effect.nats is not None and effect.nats_interval is not None:
        return effect.nats >= floor_nats and effect.nats_interval.low > 0
    if effect.points is not None and effect.points_interval is not None:
        return effect.points_interval.low > 0
    return False


def size(effect: Effect) -> float:
    """What effects are ordered by: nats where they are known, else points."""
    if effect.nats is not None:
        return effect.nats
    return effect.points if effect.points is not None else 0.0


def _capped(kl: Floats) -> Floats:
    return np.minimum(kl, CAP_NATS)
