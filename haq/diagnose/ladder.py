"""The recovery ladder of a config: nested steps up to the widest, each measured before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from haq.accuracy import Scores, compare, paired_drop_interval
from haq.allocate import LOSS, PEAK, Levels, allocate
from haq.configfile import measured
from haq.diagnose.effects import CAP_NATS
from haq.diagnose.losses import LEAST
from haq.diagnose.rungs import Pricing
from haq.precision import Assignment, Precision
from haq.quality import Direction
from haq.sensitivity import Sensitivity
from haq.terms import Floats

RUNGS = 4
"""Steps of a ladder, the widest among them."""

FALL = 4.0
"""What a step leaves of the predicted loss of the one before it is this part: one bit of noise power."""


@dataclass(frozen=True)
class Step:
    """layers: those that differ from the config. costs: modelled, by their names in every haq file."""

    layers: Mapping[str, Precision]
    costs: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Measured:
    """How a network is measured. scores: of FP32 and of the config as it is. of: layers that are raised -> scores.

    is_continuous: zeros and ones among the scores are no counts of right and wrong.
    """

    split: str
    fp32: Scores | float
    now: Scores | float
    of: Callable[[Mapping[str, Precision]], Scores | float]
    direction: Direction = "maximize"
    is_continuous: bool = False


def ladder(options: Pricing, losses: Floats, rungs: int = RUNGS) -> tuple[Step, ...]:
    """Nested steps, each of which only raises more; the last is the widest everywhere.

    losses: (groups, levels) predicted, as `haq.diagnose.losses.predicted` gives them. Each step is the cheapest, in
    latency and size relative to now, that leaves a quarter of the predicted loss of the step before it, among those
    that take nothing back. Fewer steps where there is less to raise, none where everything is at its widest.
    """
    costs = options.costs(options.now)
    weights = {name: 1 / costs[name] for name in ("latency_ms", "size_bytes") if costs.get(name)}
    table = losses.copy()
    reached: list[Levels] = []
    now, budget = options.now, float(options.model(losses).value(LOSS, [options.now])[0])
    for _ in range(rungs - 1):
        # By what the step before left: it may have gone further than it had to.
        budget = min(budget, float(options.model(losses).value(LOSS, [now])[0])) / FALL
        levels = allocate(options.model(table), {LOSS: budget}, minimize=weights)
        if levels is None or levels == options.widest:
            break
        if levels != now:
            reached.append(levels)
        now = levels
        for group, level in enumerate(levels):
            table[group, :level] = np.inf
    if options.widest != options.now:
        reached.append(options.widest)
    return tuple(Step(dict(options.raised(levels)), options.costs(levels)) for levels in reached)


def ladder_json(steps: tuple[Step, ...], how: Measured, about_latency: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps as a config holds them, measured in turn.

    about_latency: how far modelled latencies can be trusted, as the config's own metric says. A step that answers
    measurably worse than the one before it, beyond the paired interval, is not monotone and says so.
    """
    found, before = [], how.now
    for step in steps:
        scores = how.of(step.layers)
        accuracy = measured(compare(how.fp32, scores, how.split, how.direction, is_continuous=how.is_continuous))
        metrics: dict[str, Any] = {"accuracy": {**accuracy, "direction": how.direction}}
        for name, value in sorted(step.costs.items()):
            shown = int(value) if name in ("size_bytes", PEAK) else value
            metrics[name] = {"value": shown, "kind": "modelled", **(about_latency if name == "latency_ms" else {})}
        note = _worse(before, scores, how)
        layers = {layer: str(precision) for layer, precision in step.layers.items()}
        found.append({"layers": layers, "metrics": metrics, "monotone": not note, **({"note": note} if note else {})})
        before = scores
    return found


def _worse(before: Scores | float, after: Scores | float, how: Measured) -> str:
    """How much worse a step is than the one before it, in one clause; empty where it is not, as far as can be seen."""
    better, worse = (before, after) if how.direction == "maximize" else (after, before)
    if isinstance(better, np.ndarray) and isinstance(worse, np.ndarray):
        interval = paired_drop_interval(better, worse, is_continuous=how.is_continuous)
        if interval.low <= 0:
            return ""
        drop = 100 * float(np.mean(better) - np.mean(worse))
        return f"{drop:.2f} points ({interval.low:.2f} to {interval.high:.2f}) worse than the step before it"
    drop = 100 * float(np.mean(better) - np.mean(worse))
    return f"{drop:.2f} points worse than the step before it" if drop > 0 else ""


def pieces_of(options: Pricing) -> tuple[Assignment, ...]:
    """Every group at every rung, as sensitivities are measured."""
    return tuple(Assignment.of(rung) for rungs in options.rungs for rung in rungs)


def losses_of(options: Pricing, sensitivity: Sensitivity | None) -> Floats:
    """(groups, levels) what each rung loses: measured where sensitivities know it, by rounding noise elsewhere.

    Without sensitivities everything is by noise. A little of the noise is in every loss, so that no two rungs are alike
    to the allocator where measurements say nothing.
    """
    by_noise = np.full((len(options.groups), max((len(row) for row in options.noise), default=1)), np.inf)
    for group, noise in enumerate(options.noise):
        by_noise[group, : len(noise)] = noise
    if sensitivity is None:
        return by_noise
    found = np.full(by_noise.shape, np.nan)
    for group, rungs in enumerate(options.rungs):
        for level, rung in enumerate(rungs):
            value = sensitivity.of(Assignment.of(rung))
            found[group, level] = np.nan if value is None else min(value, CAP_NATS)
    known = np.isfinite(found[:, 0])
    whole, expected = float(found[known, 0].sum()), float(by_noise[known, 0].sum())
    scaled = by_noise * (whole / expected if whole > 0 and expected > 0 else 1.0)
    return np.where(np.isfinite(found), found + LEAST * scaled, scaled)
