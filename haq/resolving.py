"""Answers "what if" from a run's files: another target, other limits; no model in memory, nothing measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Measurement
from haq.allocate import AllocationModel
from haq.constraints import Constraints
from haq.engine.problem import Target, baseline_of, cost_limits, executed_by, figures
from haq.engine.targets import profile_target
from haq.errors import InfeasibleError, InputError
from haq.hardware.profile import load_profile
from haq.pareto import non_dominated
from haq.precision import Assignment
from haq.rundir import SENSITIVITY_FILE, WORKLOAD_FILE, Run
from haq.scaling import Scaling
from haq.sensitivity import Sensitivity, read_sensitivity
from haq.space import Group, SearchSpace
from haq.spec import spec_from
from haq.surrogate import Observations, Surrogate, fit, observed
from haq.sweep import sweep
from haq.workload import Workload

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """One point on a target. measurement: of what the target executes; absent where it is only *predicted*.

    drop_points, deviation_points: what the sensitivities predict, corrected by the run's measurements; costs: modelled.
    is_bound: some layer's formats were not measured there, and a narrower format's loss stands in for it.
    """

    requested: Assignment
    executed: Assignment
    costs: Mapping[str, float]
    drop_points: float
    deviation_points: float
    measurement: Measurement | None
    is_bound: bool

    @property
    def losses(self) -> tuple[float, float, float]:
        drop = self.drop_points if self.measurement is None else self.measurement.drop_points
        return self.costs["size_bytes"], self.costs["latency_ms"], drop


@dataclass(frozen=True)
class Resolved:
    """The answers on one target, smallest first, and FP32's costs there."""

    target: Target
    base: Mapping[str, float]
    answers: tuple[Answer, ...]
    surrogate: Surrogate


def resolve(run: Run, target: str, limits: Constraints, batch: int | None = None) -> Resolved:
    """The front of a run's network on a target, of the run or not, within limits: measured points and predicted ones.

    Predicted points come from the exact allocator over the corrected sensitivities. Raises InputError where the run
    holds no sensitivities, InfeasibleError where nothing is within the limits.
    """
    workload, space, sensitivity = _parts(run)
    spec = spec_from(run.info["spec"], where=f"{run.path}/run.json")
    profile = load_profile(target)
    size = spec.hardware.batch if batch is None else batch
    scaling = Scaling.of(spec.accuracy.ptq)
    view = profile_target(workload, profile, limits, batch=size, scaling=scaling)
    base = baseline_of(view, workload)
    losses = sensitivity.losses(space, executed_by(view))
    allowed = np.isfinite(losses)
    surrogate = fit(np.where(allowed, losses, 0.0), _observations(run, space, view, sensitivity))
    terms = view.terms(space) if view.terms else None
    assert terms is not None, "a profile's target has terms"
    model = AllocationModel(np.where(allowed, surrogate.corrected, np.nan), terms.figures, terms.peak)
    bounds = cost_limits(view, base)
    if limits.max_drop_points is not None:
        bounds["loss"] = max(limits.max_drop_points, 0.0) / surrogate.slope
    predicted = sweep(model, bounds)
    measured = {tuple(space.levels(candidate.requested)) for candidate in run.history.candidates}
    points = sorted({*map(tuple, predicted), *measured})
    answers = [_answer(run, view, space, sensitivity, surrogate, levels) for levels in points]
    within = [a for a in answers if _keeps(limits, a, base)]
    if not within:
        raise InfeasibleError(f"nothing measured or predicted is within the limits on {view.name}")
    keep = non_dominated([a.losses for a in within])
    front = sorted((a for a, kept in zip(within, keep, strict=True) if kept), key=lambda a: a.losses)
    return Resolved(view, base, tuple(front), surrogate)


def _observations(run: Run, space: SearchSpace, target: Target, sensitivity: Sensitivity) -> Observations:
    """What the run measured of the formats that the target executes, on whichever target it was."""
    measured = run.history.measured
    found = [(c, measured.get(target.legalize(c.requested)[0].signature)) for c in run.history.candidates]
    known = [(space.levels(candidate.requested), m) for candidate, m in found if m is not None]
    return observed([row[0] for row in known], [row[1] for row in known], sensitivity.measure, len(space.groups))


def _answer(
    run: Run,
    target: Target,
    space: SearchSpace,
    sensitivity: Sensitivity,
    surrogate: Surrogate,
    levels: tuple[int, ...],
) -> Answer:
    requested = space.assignment(levels)
    executed = target.legalize(requested)[0]
    mean, deviation = surrogate.predict(np.array([levels]))
    pieces = [Assignment.of({layer: executed[layer] for layer in group.layers}) for group in space.groups]
    measurement = run.history.measured.get(executed.signature)
    return Answer(
        requested, executed, target.costs(executed), float(mean[0]), float(deviation[0]),
        None if measurement is None or measurement.is_partial else measurement,
        any(map(sensitivity.is_bound, pieces)),
    )  # fmt: skip


def _keeps(limits: Constraints, answer: Answer, base: Mapping[str, float]) -> bool:
    """Limits on what only a measurement shows are judged where there is one; else the predicted drop is judged."""
    known = figures(answer.costs, base)
    if answer.measurement is not None:
        return limits.judge({**known, **answer.measurement.figures()}).is_feasible
    drop = limits.max_drop_points
    return limits.judge(known, cheap=True).is_feasible and (drop is None or answer.drop_points <= drop)


def _parts(run: Run) -> tuple[Workload, SearchSpace, Sensitivity]:
    """The traced network, its space and its sensitivities, from the run's files."""
    for name in (WORKLOAD_FILE, SENSITIVITY_FILE):
        if not (run.path / name).is_file():
            raise InputError(
                "the run holds no sensitivities, so nothing can be predicted", where=str(run.path), got=f"no {name}",
                expected="a run of `haq search` with the sampler haq", way_out="search again into another --out",
            )  # fmt: skip
    workload = Workload.from_json((run.path / WORKLOAD_FILE).read_text())
    groups = run.info["space"]["groups"]
    space = SearchSpace(
        workload.layer_names,
        tuple(Group(name, tuple(about["layers"]), tuple(about["bits"])) for name, about in groups.items()),
    )
    return workload, space, read_sensitivity(run.path / SENSITIVITY_FILE)
