"""Faults in TOML input become one line each."""

import pytest
from pydantic import BaseModel, ConfigDict

from haq.errors import InputError
from haq.validation import load_toml, validate


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    rows: tuple[Inner, ...] = ()


def test_valid_tables_become_the_model():
    assert validate(Outer, {"name": "a", "rows": [{"width": 3}]}, "x.toml").rows[0].width == 3


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"nam": "a"}, "unknown key; got 'nam'; expected one of name, rows; did you mean 'name'?; 1 more fault"),
        ({"name": "a", "rows": [{"widht": 3, "width": 1}]}, "got 'rows.0.widht'; expected one of width; did you mean"),
        ({}, "x.toml: key 'name' is missing"),
        ({"name": "a", "rows": [{"width": "wide"}]}, "'rows.0.width' is wrong; got 'wide'; expected a valid integer"),
    ],
)
def test_a_fault_names_file_key_got_and_expected(raw, text):
    with pytest.raises(InputError) as caught:
        validate(Outer, raw, "x.toml")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_toml_says_line_and_column(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[scope\n")
    with pytest.raises(InputError, match=r"bad\.toml: the file is not TOML; got .*line 1"):
        load_toml(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: cannot read the file; got 'No such file"):
        load_toml(tmp_path / "none.toml")
