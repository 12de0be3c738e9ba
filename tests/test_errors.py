"""Error texts are one line that says what, where, got, expected and the way out."""

import pytest

from haq.errors import CheckFailed, HaqError, InfeasibleError, InputError, MissingExtra, lookup


def test_an_input_error_is_one_line_in_a_fixed_order():
    error = InputError(
        "unknown key", where="a.toml\n[scope]", got="pin", expected="pins", way_out="did you mean 'pins'?"
    )
    assert str(error) == "a.toml [scope]: unknown key; got 'pin'; expected pins; did you mean 'pins'?"


def test_lookup_offers_the_nearest_name():
    with pytest.raises(
        InputError, match=r"--target: unknown target; got 'a10'; .*one of a100, t4; did you mean 'a100'"
    ):
        lookup({"a100": 1, "t4": 2}, "a10", "target", where="--target")


def test_lookup_returns_the_entry():
    assert lookup({"a": 1}, "a", "letter") == 1


def test_a_missing_extra_says_what_to_install():
    assert "pip install 'haq[bert]'" in str(MissingExtra("transformers", "bert"))


@pytest.mark.parametrize(("kind", "code"), [(InputError, 2), (InfeasibleError, 3), (CheckFailed, 1), (HaqError, 2)])
def test_each_branch_has_its_exit_code(kind, code):
    assert kind.exit_code == code
