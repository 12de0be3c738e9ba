"""Stacks of post-training techniques: what combines, in which order, and what is refused."""

import pytest

from haq.errors import InputError
from haq.scaling import Scaling
from haq.spec import spec_from
from haq.techniques import DEFAULT, EXCLUSIVE, TECHNIQUES, Stack

SECTIONS = {"scope": {"space": "resnet18"}, "hardware": {"targets": ["reference"]}}


def test_the_order_of_names_does_not_matter() -> None:
    written = Stack.of(["bn_fold", "cle", "mse", "bias_correction", "gptq"])
    assert written == Stack.of(["gptq", "bias_correction", "bn_fold", "mse", "cle"])
    assert written.names == ("bn_fold", "cle", "mse", "gptq", "bias_correction")
    assert (written.ranges, written.rounding, written.output, written.group) == ("mse", "gptq", "bias_correction", None)


def test_an_empty_stack_rounds_to_nearest_within_the_largest_magnitude() -> None:
    plain = Stack.of([])
    assert (plain.ranges, plain.rounding, plain.output, plain.group) == ("minmax", None, None, None)
    assert str(plain) == "round to nearest"


def test_a_name_twice_counts_once() -> None:
    assert Stack.of(["mse", "mse"]).names == ("mse",)


@pytest.mark.parametrize("family", EXCLUSIVE)
def test_two_techniques_of_one_kind_are_refused(family: str) -> None:
    members = [name for name, technique in TECHNIQUES.items() if technique.family == family]
    assert len(members) > 1
    with pytest.raises(InputError, match=f"exclude each other.*{members[0]} and {members[1]}"):
        Stack.of(members[:2])


def test_an_unknown_technique_names_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"unknown technique.*'gtpq'.*did you mean 'gptq'"):
        Stack.of(["gtpq"])


def test_groups_and_tokens_ask_the_target_for_finer_scales() -> None:
    assert Scaling.of(Stack.of(["group_64", "per_token"]).names) == Scaling(64, per_token=True)
    assert Stack.of(["group_64"]).group == 64
    assert Scaling.of(DEFAULT.names) == Scaling()


def test_a_spec_holds_the_stack_and_says_what_is_wrong_with_one() -> None:
    assert spec_from(SECTIONS, where="here").accuracy.ptq == DEFAULT.names
    spec = spec_from({**SECTIONS, "accuracy": {"ptq": ["gptq", "mse"]}}, where="here")
    assert spec.accuracy.ptq == ("mse", "gptq")
    with pytest.raises(InputError, match=r"accuracy\.ptq.*unknown technique"):
        spec_from({**SECTIONS, "accuracy": {"ptq": ["magic"]}}, where="here")
    with pytest.raises(InputError, match=r"accuracy\.ptq"):
        spec_from({**SECTIONS, "accuracy": {"ptq": "mse"}}, where="here")
