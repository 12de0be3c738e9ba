"""Answers "what if" from a run's files: another target, other limits; no model in memory, nothing measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from haq.accuracy import Measurement
from haq.allocate import AllocationModel
from haq.constraints import Constraints, called, relaxed, shown
from haq.engine.feasibility import reachable_on
from haq.engine.problem import Target, baseline_of, cost_limits, executed_by, figures
from haq.engine.targets import profile_target
from haq.errors import InfeasibleError, InputError
from haq.hardware.profile import load_profile
from haq.history import History
from haq.pareto import non_dominated
from haq.pooled import Points, Pooled, pool
from haq.precision import BIT_WIDTHS, Assignment
from haq.rundir import SENSITIVITY_FILE, WORKLOAD_FILE, Run
from haq.scaling import Scaling
from haq.sensitivity import Sensitivity, read_sensitivity
from haq.space import Group, SearchSpace
from haq.spec import Spec, spec_of_run
from haq.sweep import sweep
from haq.workload import Workload


@dataclass(frozen=True)
class Answer:
    """One point on a target. measurement: of what the target executes; absent where it is only *predicted*.

    predicted_points, deviation_points: the drop that the sensitivities predict, corrected by the run's measurements.
    costs: modelled. is_bound: some layer's formats were not measured, and a narrower format's loss stands in for it.
    """

    requested: Assignment
    executed: Assignment
    costs: Mapping[str, float]
    predicted_points: float
    deviation_points: float
    measurement: Measurement | None
    is_bound: bool

    @property
    def drop_points(self) -> float:
        """Measured, else predicted."""
        return self.predicted_points if self.measurement is None else self.measurement.drop_points

    @property
    def losses(self) -> tuple[float, float, float]:
        """(size_bytes, latency_ms, drop_points): the three objectives, minimized."""
        return self.costs["size_bytes"], self.costs["latency_ms"], self.drop_points

    def figures(self, base: Mapping[str, float]) -> dict[str, float]:
        """What limits are judged on; what only a measurement shows is unknown without one, but for the drop."""
        measured = {} if self.measurement is None else self.measurement.figures()
        return {**figures(self.costs, base), "drop_points": self.drop_points, **measured}


@dataclass(frozen=True)
class Resolved:
    """The answers on one target, smallest first, and FP32's costs there.

    unknown: group -> bit-widths that no predicted point takes, since what the target executes for them was not
    measured, nor anything narrower, or since its outputs were not finite.
    """

    target: Target
    base: Mapping[str, float]
    answers: tuple[Answer, ...]
    unknown: Mapping[str, tuple[int, ...]]


def resolve(run: Run, target: str, limits: Constraints, batch: int | None = None) -> Resolved:
    """The front of a run's network on a target within limits: points that were measured, and predicted ones.

    target: one of the run's, or any other name or path of a profile. batch: samples per inference, as in the run unless
    said. Predicted points come from the exact allocator over the sensitivities, as all of the run's measurements
    correct them; a limit on what only measurements show admits none of them. Raises InputError where the run
    holds no sensitivities or they say nothing about the target, InfeasibleError where nothing is within the limits.
    """
    workload, space, sensitivity = _parts(run)
    spec = spec_of_run(run.info["spec"], where=f"{run.path}/run.json")
    view = profile_target(
        workload, load_profile(_source(run, spec, target)), limits,
        batch=spec.hardware.batch if batch is None else batch, scaling=Scaling.of(spec.accuracy.ptq),
    )  # fmt: skip
    base = baseline_of(view, workload)
    reachable_on(view, space, base, tuple(space.uniform(bits) for bits in BIT_WIDTHS))
    executed = _executed(run.history)
    found = pool(space, sensitivity, executed_by(view), list(executed.values()))
    _check_known(found, space, run, view)
    points = _points(run, view, space, found, cost_limits(view, base))
    answers = [a for levels in points if (a := _answer(view, space, found, levels, executed)) is not None]
    within = [answer for answer in answers if limits.judge(answer.figures(base)).is_feasible]
    if not within:
        raise InfeasibleError(_nearest(view, limits, base, answers))
    keep = non_dominated([answer.losses for answer in within])
    front = sorted((a for a, kept in zip(within, keep, strict=True) if kept), key=lambda a: a.losses)
    return Resolved(view, base, tuple(front), _unknown(found, space))


def _points(run: Run, view: Target, space: SearchSpace, found: Pooled, bounds: Mapping[str, float]) -> list[list[int]]:
    """Levels worth a look: the predicted fronts with and without the largest drop, what the run asked or measured."""
    assert view.terms is not None, "a profile's target has terms"
    terms = view.terms(space)
    model = AllocationModel(found.losses, terms.figures, terms.peak)
    drop = view.constraints.max_drop_points
    dropping = {} if drop is None else {"loss": max(drop, 0.0) / found.surrogate.slope}
    asked = [space.levels(candidate.requested) for candidate in run.history.candidates]
    predicted = sweep(model, {**bounds, **dropping}) or sweep(model, bounds)
    rows = np.array([*predicted, *asked, *found.executed_here().tolist()], dtype=np.intp)
    listed: list[list[int]] = np.unique(found.narrowest(rows.reshape(-1, len(space.groups))), axis=0).tolist()
    return listed


def _answer(
    view: Target,
    space: SearchSpace,
    found: Pooled,
    levels: list[int],
    measured: Mapping[str, tuple[Assignment, Measurement]],
) -> Answer | None:
    """The point at some levels; None where it was not measured and nothing can be predicted."""
    requested = space.assignment(levels)
    executed = view.legalize(requested)[0]
    points: Points = np.array([levels], dtype=np.intp)
    known, place = measured.get(executed.signature), np.arange(len(levels))
    if known is None and not found.known[place, levels].all():
        return None
    mean, deviation = found.predict(points)
    return Answer(
        requested, executed, view.costs(executed), float(mean[0]), float(deviation[0]),
        None if known is None else known[1], bool(found.is_bound[place, levels].any()),
    )  # fmt: skip


def _executed(history: History) -> dict[str, tuple[Assignment, Measurement]]:
    """Executed signature -> what was executed, on whichever target, and its last measurement."""
    results = (result for candidate in history.candidates for result in candidate.results)
    return {r.executed.signature: (r.executed, r.measurement) for r in results if r.measurement is not None}


def _nearest(view: Target, limits: Constraints, base: Mapping[str, float], answers: list[Answer]) -> str:
    """Limits on cost can be met, so a limit on the drop stands in the way: what is nearest, and what to relax."""
    text = f"nothing that was measured or is predicted meets the limits on {view.name}"
    affordable = [answer for answer in answers if limits.judge(answer.figures(base), cheap=True).is_feasible]
    parts = []
    for limit, figure in (("max_drop_points", "drop_points"), ("max_class_drop_points", "class_drop_points")):
        known = [(value, a) for a in affordable if (value := a.figures(base).get(figure)) is not None]
        if getattr(limits, limit) is None or not known:
            continue
        least, answer = min(known, key=lambda pair: pair[0])
        how = "predicted" if answer.measurement is None else "measured"
        parts.append(f"within those on cost the smallest {called(figure)} {how} is {shown(figure, least)}")
        if least > getattr(limits, limit):
            parts.append(f"relax {relaxed(limit, least).replace('-points', '')}")
    return "; ".join([text, *parts])


def _unknown(found: Pooled, space: SearchSpace) -> dict[str, tuple[int, ...]]:
    missing = {
        group.name: tuple(bits for bits, known in zip(group.bits, row, strict=False) if not known)
        for group, row in zip(space.groups, found.known, strict=True)
    }
    return {name: bits for name, bits in missing.items() if bits}


def _check_known(found: Pooled, space: SearchSpace, run: Run, view: Target) -> None:
    """Raise InputError where nothing is known of what the target executes for some group."""
    unknown = [group.name for group in space.groups if _unknown(found, space).get(group.name) == group.bits]
    if unknown:
        raise InputError(
            f"sensitivities say nothing about what {view.name} executes", where=str(run.path),
            got=", ".join(unknown[:3]), expected="formats that were measured, or wider ones of the same layers",
            way_out=f"search again with --target {view.name}",
        )  # fmt: skip


def _source(run: Run, spec: Spec, target: str) -> str:
    """What the target's profile is loaded from: a run keeps the path of a target of one's own in its spec."""
    return dict(zip(run.targets, spec.hardware.targets, strict=False)).get(target, target)


def _parts(run: Run) -> tuple[Workload, SearchSpace, Sensitivity]:
    """The traced network, its space and its sensitivities, from the run's files."""
    for name in (WORKLOAD_FILE, SENSITIVITY_FILE):
        if not (run.path / name).is_file():
            raise InputError(
                "the run holds no sensitivities, so nothing can be predicted", where=str(run.path), got=f"no {name}",
                expected="a run of `haq search` with the sampler haq",
                way_out="search again into another --out, or choose among what was measured with `haq pick`",
            )  # fmt: skip
    workload = Workload.from_json((run.path / WORKLOAD_FILE).read_text())
    groups = run.info["space"]["groups"]
    space = SearchSpace(
        workload.layer_names,
        tuple(Group(name, tuple(about["layers"]), tuple(about["bits"])) for name, about in groups.items()),
    )
    return workload, space, read_sensitivity(run.path / SENSITIVITY_FILE)
