"""Turns a candidate into the numbers that one target's Optuna study learns from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from haq.candidate import Candidate
from haq.constraints import LIMIT_OF, ON_MEASUREMENTS
from haq.engine.problem import Problem, Target, figures
from haq.engine.study import Lesson

ONE_POINT = {"max_drop_points": 1.0, "max_class_drop_points": 1.0, "max_kl_nats": 0.01, "max_disagreement": 0.01}
"""The excess of a limit on measurements counts per point or hundredth, that of others as a fraction of the limit."""


def lesson(
    problem: Problem, target: Target, base: Mapping[str, float], candidate: Candidate, earlier: Sequence[Lesson]
) -> Lesson:
    """Values and relative excesses; an unmeasured drop is infeasible anyway and stands in the middle of the known.

    Optuna needs three numbers and ranks infeasible trials by their excess; only GP looks at the stand-in. GP also wants
    the same constraints of every trial. base: FP32's figures on the target. earlier: the target's lessons so far.
    """
    result = candidate.on(target.name)
    if result.measurement is None:
        drop = statistics.median(known.values[2] for known in earlier) if earlier else 0.0
    else:
        drop = result.measurement.drop_points
    costs = figures(result.costs, base)
    measured = {} if result.measurement is None else result.measurement.figures()
    constraints = {"failure": float(result.failure is not None)} if problem.may_fail else {}
    for limit, bound in target.constraints.set_limits().items():
        if limit in ON_MEASUREMENTS:
            # Unknown where outputs are not finite: as far off as one point, so that the candidate is infeasible.
            value = measured.get(LIMIT_OF[limit], bound + ONE_POINT[limit])
            constraints[limit] = 0.0 if result.measurement is None else (value - bound) / ONE_POINT[limit]
        elif limit == "max_latency_rise_ms":
            constraints[limit] = (costs["latency_rise_ms"] - bound) / base["latency_ms"]
        else:
            constraints[limit] = (costs[LIMIT_OF[limit]] - bound) / bound
    levels = problem.space.levels(candidate.requested)
    return Lesson(levels, (costs["size_bytes"], costs["latency_ms"], drop), constraints)
