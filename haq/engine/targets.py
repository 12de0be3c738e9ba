"""Turns a hardware profile into a target of the search."""

from __future__ import annotations

from collections.abc import Mapping

from haq.candidate import Fallback
from haq.constraints import Constraints
from haq.engine.problem import NO_LIMITS, Target
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import HardwareProfile
from haq.precision import Assignment
from haq.workload import Workload


def profile_target(
    workload: Workload, profile: HardwareProfile, constraints: Constraints = NO_LIMITS, *, batch: int = 1
) -> Target:
    """A hardware profile as a target of the search."""

    def to_executed(assignment: Assignment) -> tuple[Assignment, tuple[Fallback, ...]]:
        legal = legalize(workload, assignment, profile)
        return legal.executed, legal.fallbacks

    def costs(executed: Assignment) -> Mapping[str, float]:
        return estimate(workload, executed, profile, batch=batch).figures()

    return Target(profile.name, to_executed, costs, constraints, batch, profile.confidence, profile.title)
