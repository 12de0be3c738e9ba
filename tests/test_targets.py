"""A hardware profile as a target of the search: it executes and costs what the hardware package says."""

import numpy as np
import pytest
from nets import attention, residual, uniform
from search_fakes import workload

from haq.constraints import Constraints
from haq.engine.targets import profile_target
from haq.errors import InputError
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.scaling import Scaling
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


@pytest.mark.parametrize("name", ["reference", "tpu-v4"])
def test_a_target_that_is_asked_for_finer_scales_executes_and_costs_them_or_says_why_not(name):
    net, profile, fine = attention(), load_profile(name), Scaling(32, per_token=True)
    target = profile_target(net, profile, batch=8, scaling=fine)
    for asked in (uniform(net, 4), Assignment.of({**uniform(net, 8), "q": Precision.parse("int4g64/fp16")})):
        legal = legalize(net, asked, profile, fine)
        assert target.legalize(asked) == (legal.executed, legal.fallbacks)
        assert target.costs(legal.executed) == estimate(net, legal.executed, profile, batch=8).figures()
    plain = profile_target(net, profile, batch=8).legalize(uniform(net, 4))[0]
    shared = target.legalize(uniform(net, 4))[0].signature == plain.signature
    assert shared == (name == "tpu-v4")  # a measurement is shared only where nothing finer is executed


def test_a_population_costs_what_each_of_it_costs_alone():
    net = residual()
    target = profile_target(net, load_profile("a100"), batch=2)
    levels = np.array([[0, 1, 2], [3, 3, 3], [2, 0, 0]], dtype=np.uint8)
    priced = target.population(levels)
    for row, places in enumerate(levels):
        asked = Assignment.of(dict(zip(net.layer_names, (BIT_WIDTHS[i] for i in places), strict=True)))
        alone = target.costs(target.legalize(asked)[0])
        assert {**{name: values[row] for name, values in priced.items()}, "macs": 2 * net.macs} == pytest.approx(alone)


def test_what_no_bit_width_means_is_legalized_and_costed_all_the_same():
    net, profile = residual(), load_profile("reference")
    target = profile_target(net, profile)
    asked = Assignment.of({"a": Precision.parse("int8/fp16"), "b": 8, "c": Precision.parse("int4/int4")})
    legal = legalize(net, asked, profile)
    assert target.legalize(asked) == (legal.executed, legal.fallbacks)
    assert target.costs(legal.executed) == estimate(net, legal.executed, profile, batch=1).figures()
    with pytest.raises(InputError, match="no such layer"):
        target.legalize(Assignment.of({**asked, "d": 8}))
