"""What is searched: a workload, its space, the targets with their limits, and how accuracy is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Failure, Reading, Scores
from haq.candidate import Fallback, TargetResult
from haq.constraints import LIMIT_OF, ON_MEASUREMENTS, Constraints, Verdict, called
from haq.hardware.size import fp32_size_bytes
from haq.history import SEARCH, VALIDATION
from haq.precision import BIT_WIDTHS, FORMATS, Assignment, Precision
from haq.quality import Direction
from haq.racing import Watch
from haq.sensitivity import Sensitivity
from haq.space import Group, SearchSpace
from haq.terms import GroupTerms
from haq.trust import Trust
from haq.workload import Workload

Measure = Callable[[Assignment, str], "Reading | Failure | Scores | float"]
"""(executed assignment, split) -> a reading, its per-sample scores or one number alone, or why there is none."""

MeasureSensitivity = Callable[[Sequence[Assignment], int, Callable[[int, int], None]], Sensitivity]
"""(pieces, most pairs, progress(done, total)) -> effects; takes sample-forwards, which it states."""

Race = Callable[[Assignment, Watch], "Reading | Failure"]
"""(executed assignment, watch) -> a reading of the search split that the watch may stop, or why there is none."""

Population = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""(candidates, layers) places in BIT_WIDTHS, layers in the workload's order -> figures, NaN where one is unknown."""

NO_LIMITS = Constraints()
FACTS_ONLY = Trust("facts only")


@dataclass(frozen=True)
class Target:
    """One target as the search sees it.

    legalize: bit-widths -> what the device executes, and the fallbacks. costs: executed -> figures (decision 11's keys,
    unknown ones absent). batch, trust and title only describe the latency. population: the same costs of many requests
    at once, up to rounding; where it is absent they are asked one by one. terms: the same costs as sums over the
    groups of a space; where they are absent, what can be reached is searched and not solved.
    """

    name: str
    legalize: Callable[[Assignment], tuple[Assignment, tuple[Fallback, ...]]]
    costs: Callable[[Assignment], Mapping[str, float]]
    constraints: Constraints = NO_LIMITS
    batch: int = 1
    trust: Trust = FACTS_ONLY
    title: str = ""
    population: Population | None = None
    terms: Callable[[SearchSpace], GroupTerms] | None = None


@dataclass(frozen=True)
class Problem:
    """One search, ready to run.

    measure: called with (executed assignment, split) for each split in `splits`; a user's function that knows one data
    set has the search split only. spec: the resolved spec; provenance: `model`, `weights_hash`, `data_hash`, `metric`
    and whatever else identifies the input; both plain JSON data, kept in `run.json`. direction: which way the metric is
    better; may_fail: whether `measure` may give a Failure. sensitivity: effects of parts of the
    network on calibration data; absent where only `measure` is known of it. race: measures the search split so
    that it can be stopped early; without it every candidate is measured in full.
    """

    workload: Workload
    space: SearchSpace
    targets: tuple[Target, ...]
    measure: Measure
    splits: tuple[str, ...] = (SEARCH, VALIDATION)
    spec: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    direction: Direction = "maximize"
    may_fail: bool = False
    sensitivity: MeasureSensitivity | None = None
    race: Race | None = None

    def reading(self, executed: Assignment, split: str, stop: Watch | None = None) -> Reading | Failure:
        """What `measure` returns, or with `stop` what `race` returns; its scores as float64 or a float."""
        race = self.race
        found = self.measure(executed, split) if stop is None or race is None else race(executed, stop)
        if isinstance(found, Failure):
            return found
        reading = found if isinstance(found, Reading) else Reading(found)
        raw = np.asarray(reading.scores, dtype=np.float64)
        return replace(reading, scores=float(raw) if raw.ndim == 0 else raw)


@dataclass(frozen=True)
class SearchOptions:
    """How a search is run.

    trials: candidates whose accuracy is measured, all different. timeout_s: no new candidate starts after it.
    until_converged: end when the hypervolume has stopped to grow beyond the noise; trials then is the most.
    storage: `sqlite` mirrors the study into the run directory for dashboards, `none` does not, else an Optuna URL.
    seeds: whether haq's own first candidates are asked before the sampler is; without them it stands alone.
    """

    trials: int = 64
    seed: int = 0
    sampler: str = "haq"
    timeout_s: float | None = None
    until_converged: bool = False
    storage: str = "sqlite"
    seeds: bool = True


def effective_size(problem: Problem) -> int:
    """The number of assignments that differ in what some target executes.

    Targets legalize layer by layer, so that uniform requests tell what each layer executes at each bit-width.
    """
    layers, targets = problem.space.layers, problem.targets
    executed = {bits: [t.legalize(Assignment.uniform(layers, bits))[0] for t in targets] for bits in BIT_WIDTHS}

    def different(group: Group) -> int:
        return len({tuple(e.precision(n) for e in executed[bits] for n in group.layers) for bits in group.bits})

    return math.prod(different(group) for group in problem.space.groups)


def executed_by(target: Target) -> Callable[[Assignment], Assignment]:
    """Bit-widths -> what the target executes, without its fallbacks."""
    return lambda requested: target.legalize(requested)[0]


def unquantized(workload: Workload) -> Assignment:
    """FP32 everywhere, whatever a target would execute: what accuracy is compared with."""
    fp32 = Precision(FORMATS["fp32"], FORMATS["fp32"])
    return Assignment.uniform(workload.layer_names, fp32)


def baseline_costs(problem: Problem) -> dict[str, Mapping[str, float]]:
    """Target -> what costs are compared with there."""
    return {target.name: baseline_of(target, problem.workload) for target in problem.targets}


def baseline_of(target: Target, workload: Workload) -> Mapping[str, float]:
    """What costs are compared with: the FP32 model as legalized there, but its size as stored in FP32.

    A phone that runs FP32 as fp16 must not make a model half as large look like no gain.
    """
    fp32 = Assignment.uniform(workload.layer_names, 32)
    return {**target.costs(target.legalize(fp32)[0]), "size_bytes": fp32_size_bytes(workload)}


def price(target: Target, requested: Assignment, base: Mapping[str, float]) -> TargetResult:
    """The candidate on one target before accuracy is known; its violations are those of cost alone."""
    executed, fallbacks = target.legalize(requested)
    costs = target.costs(executed)
    verdict = target.constraints.judge(figures(costs, base), cheap=True)
    return TargetResult(target.name, executed, fallbacks, costs, violations=sentences(verdict))


def figures(costs: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """The costs together with what is relative to the baseline: what limits are judged on, but for the drop."""
    return {**costs, "latency_rise_ms": costs["latency_ms"] - base["latency_ms"]}


def sentences(verdict: Verdict) -> tuple[str, ...]:
    """One sentence for each violated limit and each that cannot be judged."""
    measured = {LIMIT_OF[limit] for limit in ON_MEASUREMENTS}
    unknown = (
        f"{called(name)} is unknown, as outputs are not finite, so its limit cannot be judged"
        if name in measured
        else f"{name} is unknown on this target, so its limit cannot be judged"
        for name in verdict.unknown
    )
    return (*map(str, verdict.violations), *unknown)


WORST_DROP_POINTS = 10.0
"""The reference drop of a hypervolume where the user sets no largest drop."""


def reference_point(target: Target, base: Mapping[str, float]) -> tuple[float, float, float]:
    """The fixed point of the target's hypervolume: FP32's size and latency, and the drop that is not worth looking at.

    A hair above FP32 and the limit, so that points exactly there count.
    """
    drop = target.constraints.max_drop_points
    worst = WORST_DROP_POINTS if drop is None else drop + 0.01
    return 1.001 * base["size_bytes"], 1.001 * base["latency_ms"], worst


def cost_limits(target: Target, base: Mapping[str, float]) -> dict[str, float]:
    """Figure -> bound, for the limits on costs; a limit on the latency's rise is one on the latency."""
    limits: dict[str, float] = {}
    for limit, bound in target.constraints.set_limits().items():
        if limit in ON_MEASUREMENTS:
            continue
        figure = LIMIT_OF[limit]
        if figure == "latency_rise_ms":
            figure, bound = "latency_ms", bound + base["latency_ms"]
        limits[figure] = min(bound, limits.get(figure, math.inf))
    return limits
