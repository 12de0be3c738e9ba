"""How far a latency can be trusted: said where a profile knows it, and never made up where it does not."""

import pytest

from haq.hardware.profile import list_profiles, load_profile
from haq.trust import Trust


def test_a_spread_is_a_fraction_and_reads_as_percent():
    trust = Trust("facts only", 0.5)
    assert str(trust) == "+-50 % (facts only)"
    assert trust.to_json() == {"confidence": "facts only", "latency_spread": 0.5}


def test_an_unknown_spread_is_absent_and_not_zero():
    profile = load_profile("reference")
    unknown = profile.latency_spread.model_copy(update={"value": None, "status": "unknown"})
    trust = Trust.of(profile.model_copy(update={"latency_spread": unknown}))
    assert (trust.error, str(trust)) == ("unknown", "(nominal)")
    assert trust.to_json() == {"confidence": "nominal"}


def test_a_run_from_before_the_spread_was_recorded_can_be_read():
    assert Trust.from_json({"batch": 1, "confidence": "facts only", "title": ""}) == Trust("facts only")


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
def test_every_shipped_profile_reads_back_what_it_writes(profile):
    assert Trust.from_json(Trust.of(profile).to_json()) == Trust.of(profile)
