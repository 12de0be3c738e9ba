"""References to functions resolve in packages and in files beside a space, and never in a run directory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from haq.errors import InputError, MissingExtra
from haq.references import check_reference, resolve


def test_a_package_function_is_found(tmp_path: Path) -> None:
    assert resolve("math:sqrt", tmp_path) is math.sqrt


def test_a_file_function_is_found_in_the_given_folder_and_the_file_runs_once(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("CALLS = []\ndef build():\n    CALLS.append(1)\n    return len(CALLS)\n")
    assert resolve("./net.py:build", tmp_path)() == 1
    assert resolve("./net.py:build", tmp_path)() == 2


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "net.py").write_text(f"def build():\n    return {number}\n")
    assert [resolve("./net.py:build", tmp_path / str(n))() for n in (1, 2)] == [1, 2]


@pytest.mark.parametrize("text", ["torch", "a.b.c", "a:b:c", ":f", "a:", "/tmp/x.py:f", "../x.py", "a b:c", ""])
def test_what_is_no_reference_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="not a reference"):
        check_reference(text)
    with pytest.raises(InputError, match="not a function"):
        resolve(text, tmp_path)


def test_absent_files_modules_and_functions_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file does not exist"):
        resolve("./absent.py:f", tmp_path)
    with pytest.raises(InputError, match="module 'no_such_package' cannot be found"):
        resolve("no_such_package.sub:f", tmp_path)
    with pytest.raises(InputError, match=r"no such function.*did you mean 'sqrt'"):
        resolve("math:sqr", tmp_path)


def test_a_missing_package_names_the_extra_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "needs.py").write_text("import no_such_package\ndef f():\n    pass\n")
    with pytest.raises(MissingExtra, match=r"pip install 'haq\[mnist\]'"):
        resolve("./needs.py:f", tmp_path, ("mnist",))
    with pytest.raises(InputError, match="needs the package 'no_such_package'"):
        resolve("./needs.py:f", tmp_path)


def test_code_in_a_run_directory_is_never_executed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "net.py").write_text("raise SystemExit\n")
    with pytest.raises(InputError, match="not loaded from a run directory"):
        resolve("./net.py:f", tmp_path)


def test_a_file_that_fails_while_it_is_read_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("raise RuntimeError('first')\n")
    with pytest.raises(RuntimeError, match="first"):
        resolve("./net.py:f", tmp_path)
    path.write_text("def f():\n    return 'second attempt'\n")
    assert resolve("./net.py:f", tmp_path)() == "second attempt"
