"""The limits a user sets, and the verdict of one candidate against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Context, Decimal

LIMIT_OF = {
    "max_drop_points": "drop_points",
    "max_class_drop_points": "class_drop_points",
    "max_kl_nats": "kl_nats",
    "max_disagreement": "disagreement",
    "max_latency_ms": "latency_ms",
    "max_latency_rise_ms": "latency_rise_ms",
    "max_size_bytes": "size_bytes",
    "max_memory_bytes": "activation_peak_bytes",
    "max_energy_mj": "energy_mj",
}
"""Each limit and the figure that it bounds."""

ON_MEASUREMENTS = frozenset({"max_drop_points", "max_class_drop_points", "max_kl_nats", "max_disagreement"})
"""The limits on what must be measured; the others are on costs, which are known before."""

_WORDS = {
    "drop_points": ("drop", "points", 1.0),
    "class_drop_points": ("worst class's drop", "points", 1.0),
    "kl_nats": ("KL divergence from FP32", "nats", 1.0),
    "disagreement": ("disagreement with FP32", "of the samples", 1.0),
    "latency_ms": ("latency", "ms", 1.0),
    "latency_rise_ms": ("latency rise", "ms", 1.0),
    "size_bytes": ("size", "MB", 1e-6),
    "activation_peak_bytes": ("peak of activations", "MB", 1e-6),
    "energy_mj": ("energy", "mJ", 1.0),
}
"""Figure -> what a person calls it, its unit in messages (the one that limits are given in), and the factor to it."""


def called(figure: str) -> str:
    """What a person calls the figure: `size` for `size_bytes`."""
    return _WORDS[figure][0]


def shown(figure: str, value: float) -> str:
    """The value in the unit in which limits are given: 12.5 MB for 12,500,000 bytes."""
    _, unit, factor = _WORDS[figure]
    return f"{value * factor:.6g} {unit}"


def relaxed(limit: str, least: float, target: str | None = None) -> str:
    """The command line's option and its least value for a limit: `--max-size-mb to 12.5001` for 12,500,001 bytes.

    Rounded up to six digits. target: the one of several that it is meant for, as in `--max-size-mb to mobile=12.5001`.
    """
    _, _, factor = _WORDS[LIMIT_OF[limit]]
    six_digits = Context(prec=6, rounding=ROUND_CEILING)
    number = six_digits.create_decimal(Decimal(repr(least)) * Decimal(repr(factor)))
    if float(number) * round(1 / factor) < least:  # what is read from the option, as the spec converts it
        number = number.next_plus(six_digits)
    name = limit.replace("_bytes", "_mb").replace("_", "-")
    return f"--{name} to {'' if target is None else f'{target}='}{float(number):.6g}"


@dataclass(frozen=True)
class Violation:
    """One limit that is exceeded."""

    limit: str
    value: float
    bound: float

    @property
    def excess(self) -> float:
        """value - bound, positive."""
        return self.value - self.bound

    def __str__(self) -> str:
        figure = LIMIT_OF[self.limit]
        return f"{called(figure)} {shown(figure, self.value)} exceeds the limit of {shown(figure, self.bound)}"


@dataclass(frozen=True)
class Verdict:
    """What is violated (empty: feasible), and which limits could not be judged because the figure is unknown."""

    violations: tuple[Violation, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def is_feasible(self) -> bool:
        return not self.violations and not self.unknown


@dataclass(frozen=True)
class Constraints:
    """Upper limits; one that is not set is None and never judged.

    max_latency_rise_ms is over the legalized FP32 baseline of the same target. max_class_drop_points: of the class that
    lost most; max_disagreement: fraction of samples whose top-1 answer is not FP32's.
    """

    max_drop_points: float | None = None
    max_class_drop_points: float | None = None
    max_kl_nats: float | None = None
    max_disagreement: float | None = None
    max_latency_ms: float | None = None
    max_latency_rise_ms: float | None = None
    max_size_bytes: float | None = None
    max_memory_bytes: float | None = None
    max_energy_mj: float | None = None

    def set_limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def judge(self, figures: Mapping[str, float], *, cheap: bool = False) -> Verdict:
        """The verdict on a candidate's figures (keys as the values of LIMIT_OF).

        cheap: judge costs only, before accuracy is measured.
        """
        violations, unknown = [], []
        for limit, bound in self.set_limits().items():
            if cheap and limit in ON_MEASUREMENTS:
                continue
            value = figures.get(LIMIT_OF[limit])
            if value is None:
                unknown.append(LIMIT_OF[limit])
            elif value > bound:
                violations.append(Violation(limit, value, bound))
        return Verdict(tuple(violations), tuple(unknown))
