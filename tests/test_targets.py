"""A hardware profile as a target of the search: it executes and costs what the hardware package says."""

from search_fakes import workload

from haq.constraints import Constraints
from haq.engine.targets import profile_target
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.precision import Assignment
from haq.trust import Trust


def test_a_profile_executes_and_costs_what_the_hardware_package_says():
    net, profile, limits = workload(), load_profile("tpu-v4"), Constraints(max_latency_ms=1.0)
    target = profile_target(net, profile, limits, batch=8)
    asked = Assignment.of({"a": 4, "b": 8, "c": 16, "d": 32})
    executed, fallbacks = target.legalize(asked)
    assert executed == legalize(net, asked, profile).executed
    assert fallbacks == legalize(net, asked, profile).fallbacks
    assert target.costs(executed) == estimate(net, executed, profile, batch=8).figures()
    assert (target.name, target.batch, target.constraints) == ("tpu-v4", 8, limits)
    assert target.trust == Trust(profile.confidence, profile.latency_spread.value)
