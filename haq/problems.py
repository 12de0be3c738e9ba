"""Puts a spec's search together: its network with data, its space and its targets, ready for the engine.

This is glue: torch and Optuna are imported where they are used, so that importing this module stays light.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from haq.grouping import natural_groups
from haq.hardware.profile import HardwareProfile, load_profile
from haq.resources import cache_dir
from haq.scaling import Scaling
from haq.space import Rule, build_space
from haq.spacefile import load_space
from haq.spec import Scope, Spec
from haq.techniques import Stack

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.engine.problem import Problem
    from haq.nn.bundle import Bundle

Shape = tuple[tuple[Rule, ...], tuple[tuple[str, ...], ...]]
"""A space's rules and groups."""


def problem_of(spec: Spec) -> Problem:
    """What a search of the spec searches, for `haq.engine.loop.run_search`; raises InputError on wrong input."""
    return build_problem(*load_network(spec), spec)


def load_network(spec: Spec, sources: Scope | None = None, metric: str | None = None) -> tuple[Bundle, Shape]:
    """The network with its data, and the rules and groups of its space; raises InputError on wrong input.

    sources: where space, model, weights and data are loaded from, when that is not what the spec says; metric: the same
    for code that the spec names as its metric.
    """
    scope = sources if sources is not None else spec.scope
    space = load_space(scope.space)
    for target in spec.hardware.targets:
        load_profile(target)  # a wrong name is said before a network is loaded

    from haq.nn.bundle import load_bundle
    from haq.nn.user_metrics import load_metric

    own = load_metric(metric or str(spec.accuracy.metric)) if spec.accuracy.is_metric_external else None
    bundle = load_bundle(space, weights=scope.weights, data=scope.data, model=scope.model)
    rules = tuple(Rule(rule.layers, rule.bits) for rule in space.rules)
    return replace(bundle, metric=own), (rules, tuple(group.layers for group in space.groups))


def build_problem(bundle: Bundle, shape: Shape, spec: Spec) -> Problem:
    """The spec's problem on a network; raises InputError where they do not fit together."""
    from haq.engine.problem import Problem
    from haq.engine.targets import profile_target
    from haq.nn.judge import choose_driver
    from haq.nn.prepare import Quantization, prepare

    accuracy, hardware = spec.accuracy, spec.hardware
    profiles = {name: load_profile(name) for name in hardware.targets}
    assert bundle.task is not None, "a bundle without a task cannot be searched"
    driver = choose_driver(bundle.task, bundle.metric, accuracy.metric, accuracy.direction)
    stack = Stack.of(accuracy.ptq)
    quantization = Quantization(stack, accuracy.observer, cache_dir() / "ptq")
    prepared = prepare(bundle, how=quantization, samples=accuracy.samples, driver=driver)
    scaling = Scaling.of(stack.names)
    workload, scope = prepared.workload, spec.scope
    ties = natural_groups(workload) if scope.grouping == "natural" else ()
    return Problem(
        workload,
        build_space(workload, *shape, scope.granularity, scope.pins, ties=ties),
        tuple(
            profile_target(workload, profile, spec.constraints(name), batch=hardware.batch, scaling=scaling)
            for name, profile in profiles.items()
        ),
        prepared.measure,
        prepared.splits,
        spec=spec.to_json(),
        # A run whose profile was edited meanwhile would mix two cost models, so their content is part of its identity.
        provenance={**prepared.provenance, "profiles": {p.name: content_hash(p) for p in profiles.values()}},
        direction=driver.direction,
        may_fail=driver.may_fail,
        sensitivity=prepared.sensitivity,
        race=prepared.race if spec.search.racing else None,
    )


def content_hash(profile: HardwareProfile) -> str:
    """16 hex digits that name every figure of a profile."""
    # A key that a later haq adds, and that the profile leaves at its default, changes no price and no run's identity.
    return hashlib.sha256(profile.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:16]
