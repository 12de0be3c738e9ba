"""Every shipped space on every shipped target: it traces whole, legalizes, and has a price for everything."""

import math

import pytest

from haq.hardware.cost import estimate
from haq.hardware.legalize import executable, legalize
from haq.hardware.profile import load_profile, option_titles
from haq.hardware.size import fp32_size_bytes
from haq.precision import BIT_WIDTHS, Assignment
from haq.resources import shipped_names
from haq.space import Rule, build_space
from haq.spacefile import load_space
from haq.tracecache import workload_of

SPACES = shipped_names("search_spaces")
NAMES = shipped_names("hardware_profiles")
TARGETS = [*NAMES, *(f"{name}:{option}" for name in NAMES for option in option_titles(name))]


@pytest.fixture(scope="module", params=SPACES)
def shipped(request):
    pytest.importorskip("transformers")
    space = load_space(request.param)
    return space, workload_of(space)


def test_its_network_is_traced_whole_and_folded(shipped):
    _, workload = shipped
    assert workload.unsupported == ()
    assert workload.macs > 0
    assert fp32_size_bytes(workload) == 4 * workload.parameters
    for layer in workload.layers:
        assert layer.gemm is None or layer.gemm.m * layer.gemm.n * layer.gemm.k * layer.gemm.count == layer.macs


def test_its_rules_and_groups_make_a_space_that_covers_every_layer(shipped):
    space, workload = shipped
    rules = tuple(Rule(rule.layers, rule.bits) for rule in space.rules)
    found = build_space(workload, rules, tuple(group.layers for group in space.groups))
    assert sorted(layer for group in found.groups for layer in group.layers) == sorted(workload.layer_names)
    widest = found.assignment(found.uniform(32))
    assert found.levels(widest) == found.uniform(32)


@pytest.mark.parametrize("target", TARGETS)
def test_every_width_is_executed_and_nothing_is_free(shipped, target):
    _, workload = shipped
    profile = load_profile(target)
    sizes = []
    for bits in BIT_WIDTHS:
        legal = legalize(workload, Assignment.uniform(workload.layer_names, bits), profile)
        assert all(legal.executed[layer.name] in executable(profile, layer) for layer in workload.layers)
        assert all(f.reason and f.requested != f.executed for f in legal.fallbacks)
        cost = estimate(workload, legal.executed, profile, batch=1)
        assert all(c.latency_ms > 0 for c in cost.layers)
        assert all(math.isfinite(value) and value > 0 for value in cost.figures().values())
        sizes.append(cost.size_bytes)
    assert sizes == sorted(sizes)
