"""Turns a hardware profile into a target of the search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.candidate import Fallback
from haq.constraints import Constraints
from haq.engine.problem import NO_LIMITS, Target
from haq.hardware.cost import estimate
from haq.hardware.groupterms import group_terms
from haq.hardware.legalize import legalize
from haq.hardware.profile import HardwareProfile
from haq.hardware.table import cost_table
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.scaling import PLAIN, Scaling
from haq.space import SearchSpace
from haq.terms import GroupTerms
from haq.trust import Trust
from haq.workload import Workload


def profile_target(
    workload: Workload,
    profile: HardwareProfile,
    constraints: Constraints = NO_LIMITS,
    *,
    batch: int = 1,
    scaling: Scaling = PLAIN,
) -> Target:
    """A hardware profile as a target of the search; what the search asks is looked up, the rest worked out.

    scaling: the scales that its bit-widths ask for.
    """
    table, layers = cost_table(workload, profile, batch=batch, scaling=scaling), workload.layer_names
    executed_as, fallback_of = _legalized(workload, profile, scaling)

    def to_executed(assignment: Assignment) -> tuple[Assignment, tuple[Fallback, ...]]:
        if tuple(assignment) != layers or not executed_as.keys() >= set(assignment.entries):
            legal = legalize(workload, assignment, profile, scaling)
            return legal.executed, legal.fallbacks
        executed = Assignment(tuple((entry[0], executed_as[entry]) for entry in assignment.entries))
        return executed, tuple(fallback_of[entry] for entry in assignment.entries if entry in fallback_of)

    def costs(executed: Assignment) -> Mapping[str, float]:
        levels = table.levels(executed)
        return estimate(workload, executed, profile, batch=batch).figures() if levels is None else table.figures(levels)

    def population(levels: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return table.price(levels).by_name()

    def terms(space: SearchSpace) -> GroupTerms:
        return group_terms(table, space)

    trust = Trust.of(profile)
    return Target(profile.name, to_executed, costs, constraints, batch, trust, profile.title, population, terms)


Entry = tuple[str, "int | Precision"]


def _legalized(
    workload: Workload, profile: HardwareProfile, scaling: Scaling
) -> tuple[dict[Entry, Precision], dict[Entry, Fallback]]:
    """What (layer, bit-width) is executed as, and the fallbacks among them: legalizing goes layer by layer."""
    executed: dict[Entry, Precision] = {}
    fallbacks: dict[Entry, Fallback] = {}
    for bits in BIT_WIDTHS:
        legal = legalize(workload, Assignment.uniform(workload.layer_names, bits), profile, scaling)
        executed |= {(layer, bits): legal.executed.precision(layer) for layer in workload.layer_names}
        fallbacks |= {(fallback.layer, bits): fallback for fallback in legal.fallbacks}
    return executed, fallbacks
