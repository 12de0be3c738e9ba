"""The names that `import haq` offers."""

import subprocess
import sys

import pytest

import haq


@pytest.mark.parametrize("name", haq.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(haq, name).__doc__


def test_importing_haq_loads_nothing():
    code = "import sys, haq; print([m for m in ('torch', 'optuna', 'numpy', 'pydantic') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        haq.serch  # noqa: B018
