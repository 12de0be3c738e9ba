"""The built wheel works where the checkout is not: shipped data, console script, an estimate from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, which borrows the dependencies (torch is 200 MB) by a .pth file.

    Python does not follow .pth files inside a folder that a .pth file added, so the editable installation of the
    checkout beside those dependencies stays invisible.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder / "bin"


def run(command: list[str], cwd: Path) -> str:
    """Standard output of a command in a clean environment; the checkout is neither its folder nor on its path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run(
        command, cwd=cwd, env={**kept, "HAQ_CACHE_DIR": str(cwd / "cache")}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def stems(folder: str) -> set[str]:
    return {path.stem for path in (CHECKOUT / folder).glob("*.toml")}


def test_the_wheel_holds_the_package_and_both_data_folders_and_no_leftovers(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("hardware_profiles", "search_spaces"):
        shipped = {Path(n).stem for n in names if n.startswith(f"haq/_data/{folder}/") and n.endswith(".toml")}
        assert shipped == stems(folder)
        assert shipped
    assert not [n for n in names if "__pycache__" in n or n.startswith(("tests/", "experiments/"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "haq/schemas/haq.config-v1.json" in names


def test_the_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import haq, sys, json; print(json.dumps([haq.__file__, sys.path]))"
    file, path = json.loads(run([str(installed / "python"), "-c", code], tmp_path))
    assert Path(file).is_relative_to(installed.parent)
    assert str(CHECKOUT) not in path


def test_targets_and_spaces_are_listed_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    for command, folder in (("targets", "hardware_profiles"), ("spaces", "search_spaces")):
        listed = json.loads(run([str(installed / "haq"), command, "--json"], tmp_path))
        assert {entry["name"] for entry in listed} == stems(folder)


def test_an_estimate_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    arguments = ["estimate", "--space", "resnet18", "--target", "a100", "--batch", "8", "--bits", "8", "--json"]
    found = json.loads(run([str(installed / "haq"), *arguments], tmp_path))
    assert (found["target"], found["batch"]) == ("a100", 8)
    # 11.69 M parameters: at least a byte each, and less than a quarter over that for scales and biases.
    assert 11.6e6 < found["size_bytes"] < 14e6
