"""How many samples it takes to see a drop of accuracy, when both networks answer for the same samples."""

from __future__ import annotations

import math

from haq.accuracy import Z95
from haq.errors import InputError


def samples_to_see(drop_points: float, discordant_share: float = 0.0) -> int:
    """The least number of samples on which a drop's 95 % interval, centred on it, stays above zero.

    n = (1.96 / d)^2 (s - d^2) with d the drop as a fraction and s the share of samples on which one network is right
    and the other wrong: the variance of a paired difference (Connor, Biometrics 43, 1987, for a power of one half).
    discordant_share: never less than d, the best case, in which nothing but the drop differs. Raises InputError unless
    0 < drop_points < 100 and the share is one.
    """
    if not 0 < drop_points < 100:
        raise InputError("not a drop of accuracy", where="--max-drop", got=drop_points, expected="points from 0 to 100")
    if not 0 <= discordant_share <= 1:
        raise InputError("not a share of samples", got=discordant_share, expected="0 to 1")
    drop = drop_points / 100
    return math.ceil(round((Z95 / drop) ** 2 * (max(discordant_share, drop) - drop**2), 6))


def independent_share(accuracy: float) -> float:
    """The share of discordant samples of two networks that are right equally often, each by its own luck: 2 p (1 - p).

    Two networks of which one is made from the other err together, so that this is an upper bound in practice.
    """
    return 2 * accuracy * (1 - accuracy)


def check_enough(drop_points: float, samples: int, accuracy: float, *, where: str) -> None:
    """Raise InputError where a drop of so many points cannot be told from none on so many samples.

    Refused is only what even the best case does not resolve. accuracy: FP32's, a fraction.
    """
    least = samples_to_see(drop_points)
    if samples >= least:
        return
    likely = max(least, samples_to_see(drop_points, independent_share(accuracy)))
    raise InputError(
        f"too few samples to see a drop of {drop_points:g} points", where=where, got=samples,
        expected=f"at least {least:,}, and up to {likely:,} where the networks err apart from each other",
        way_out="give more data or a larger --max-drop",
    )  # fmt: skip
