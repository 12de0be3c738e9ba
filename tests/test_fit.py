"""The fit finds what made the latencies, says how sure it is, and is not led astray by a bad row or a lack of rows."""

import math

import numpy as np
import pytest
from nets import linear, residual, uniform

from haq.errors import InputError
from haq.hardware.calibrate import fit, predict
from haq.hardware.calibration import Free
from haq.hardware.cost import estimate
from haq.hardware.ledger import Ledger, Observation
from haq.hardware.legalize import legalize
from haq.hardware.profile import list_profiles, load_profile
from haq.precision import Assignment
from haq.workload import Workload

REFERENCE = load_profile("reference")


def free(key, prior, factor=3.0):
    return Free(keys=(key,), prior=prior, factor=factor, source="a prior of this test")


def square(side):
    """One linear layer of 256 rows: compute-bound on the reference, 2 x 256 x side x side operations."""
    return Workload(f"square{side}", (("x", (256, side)),), (linear("l", "x", side, side, 256),), ("l",))


def row(side, latency_s, model="", batch=1, name=""):
    net = square(side)
    executed = legalize(net, uniform(net, 32), REFERENCE).executed
    return Observation(name or f"{side}-{batch}", model or net.name, REFERENCE, net, executed, batch, latency_s)


def made(side, efficiency, launch_s, batch=1):
    """The latency by hand: fp32 at 1 TFLOP/s times the efficiency, and one kernel."""
    return 2 * 256 * batch * side**2 / (1e12 * efficiency) + launch_s


SIDES = (64, 128, 256, 512, 768, 1024)
PARAMETERS = (free("efficiency.gemm", 0.7), free("overhead.kernel.gemm", 10))


def rows(efficiency=0.35, launch_s=25e-6):
    return [row(side, made(side, efficiency, launch_s, batch), batch=batch) for side in SIDES for batch in (1, 4)]


def test_it_finds_the_parameters_that_made_the_rows() -> None:
    found = fit(PARAMETERS, rows())
    assert found.values["efficiency.gemm"] == pytest.approx(0.35, rel=0.01)
    assert found.values["overhead.kernel.gemm"] == pytest.approx(25, rel=0.01)  # the figure's unit is microseconds
    assert np.abs(found.errors).max() < 0.01
    assert all(parameter.sd < 0.05 for parameter in found.parameters)


def test_one_row_that_is_three_times_too_slow_moves_little() -> None:
    good = rows()
    bad = [*good[:-1], row(1024, 3 * good[-1].latency_s, batch=4)]
    found = fit(PARAMETERS, bad)
    assert found.values["efficiency.gemm"] == pytest.approx(0.35, rel=0.05)
    assert found.errors[-1] == pytest.approx(-2 / 3, abs=0.03)


def test_what_no_row_shows_stays_at_its_prior_with_its_width() -> None:
    found = fit((*PARAMETERS, free("overhead.kernel.conv", 7, 2.0)), rows())
    conv = found.parameters[2]
    assert conv.value == pytest.approx(7)
    assert conv.sd == pytest.approx(math.log(2), rel=0.01)


def test_few_rows_say_little_however_well_they_are_met() -> None:
    found = fit(PARAMETERS, rows()[:2])
    assert found.parameters[0].sd > 0.09


def test_keys_of_one_parameter_share_its_value() -> None:
    shared = Free(
        keys=("overhead.kernel.gemm", "overhead.kernel.conv"), prior=10, factor=3, source="a prior of this test"
    )
    found = fit((free("efficiency.gemm", 0.7), shared), rows())
    assert found.values["overhead.kernel.conv"] == found.values["overhead.kernel.gemm"]


def test_a_share_of_a_peak_stays_at_most_one() -> None:
    found = fit(PARAMETERS, rows(efficiency=1.7))
    assert found.values["efficiency.gemm"] <= 1.0


def test_a_prediction_uses_the_fitted_values_on_other_rows() -> None:
    found = fit(PARAMETERS, rows()[:-2])
    held = row(1024, made(1024, 0.35, 25e-6))
    assert predict(found.values, [held])[held.id] == pytest.approx(held.latency_s, rel=0.02)


@pytest.mark.parametrize("key", ["efficiency.gem", "tile.m", "memory.capacity", "latency_spread"])
def test_only_rates_can_be_free(key: str) -> None:
    with pytest.raises(InputError, match=r"no rate of the profile; got .*; expected one of arithmetic"):
        fit((free(key, 1.0),), rows())


def test_nothing_can_be_fitted_to_nothing() -> None:
    with pytest.raises(InputError, match="nothing to fit to; expected at least one measured row"):
        fit(PARAMETERS, [])


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda p: p.name)
def test_the_columns_of_the_fit_add_up_to_the_layer_by_layer_estimate(profile) -> None:
    net = residual()
    mixed = Assignment.of({"a": 16, "b": 8, "c": 32})
    executed = legalize(net, mixed, profile).executed
    seen = [Observation(str(b), "residual", profile, net, executed, b, 1.0) for b in (1, 16)]
    slow = [estimate(net, executed, profile, batch=b).latency_ms / 1e3 for b in (1, 16)]
    np.testing.assert_allclose(Ledger.of(seen).seconds({}), slow, rtol=1e-12)


def test_rows_of_several_profiles_are_priced_each_on_its_own() -> None:
    net = residual()
    profiles = [load_profile(name) for name in ("a100", "a100:80gb", "a100")]
    seen = [
        Observation(str(i), "residual", p, net, legalize(net, uniform(net, 32), p).executed, 64, 1.0)
        for i, p in enumerate(profiles)
    ]
    slow = [estimate(net, row.executed, row.profile, batch=64).latency_ms / 1e3 for row in seen]
    np.testing.assert_allclose(Ledger.of(seen).seconds({}), slow, rtol=1e-12)
