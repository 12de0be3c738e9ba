"""The command line: what is printed, exit codes, one-line errors, and that looking around loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from haq.cli import main


class Ran:
    """One run of the command line: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Haq:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Ran:
        code = main([str(a) for a in arguments])
        out, err = self._capsys.readouterr()
        return Ran(code, out, err)

    def error(self, *arguments: str | Path, code: int = 2) -> str:
        """The error of a run that must fail with this code: exactly one line, and nothing that looks like a result."""
        ran = self(*arguments)
        assert ran.code == code, ran.err + ran.out
        assert ran.err.startswith("haq: ")
        assert ran.err.count("\n") == 1, ran.err
        assert "Traceback" not in ran.err
        return ran.err


@pytest.fixture
def haq(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Haq:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    return Haq(capsys)


def test_help_lists_the_commands_and_the_exit_codes(haq: Haq) -> None:
    ran = haq("--help")
    assert ran.code == 0
    commands = "targets spaces estimate search resume front pick compare-targets report doctor cache"
    for command in commands.split():
        assert command in ran.out
    assert "130 interrupted" in ran.out


def test_unknown_command_and_option_name_the_nearest(haq: Haq) -> None:
    assert "search" in haq.error("serach")
    assert "--target" in haq.error("estimate", "--tagret", "a100")


def test_targets_state_how_far_their_latency_can_be_trusted(haq: Haq) -> None:
    listed = json.loads(haq("targets", "--json").out)
    assert {"tpu-v3", "tpu-v4", "a100", "mobile", "mobile-cpu", "reference"} <= {t["name"] for t in listed}
    assert all(t["title"] and t["confidence"] for t in listed)
    assert "a100" in haq("targets").out


def test_spaces_are_listed_with_their_extras(haq: Haq) -> None:
    listed = {s["name"]: s for s in json.loads(haq("spaces", "--json").out)}
    assert "mnist" in listed["mnist_resnet18"]["extras"]
    assert listed["mnist_resnet18"]["measured"]
    assert not listed["resnet50"]["measured"]


def test_estimate_has_the_keys_of_the_design_and_unknown_ones_are_absent(haq: Haq) -> None:
    found = json.loads(haq("estimate", "-s", "resnet18", "-t", "a100", "-b", "32", "--bits", "8", "--json").out)
    assert {"target", "batch", "latency_ms", "size_bytes", "activation_peak_bytes", "traffic_bytes", "macs"} <= set(
        found
    )
    assert set(found) <= {
        "target", "batch", "latency_ms", "size_bytes", "activation_peak_bytes", "traffic_bytes", "energy_mj", "macs",
        "fallbacks", "unsupported", "confidence", "latency_spread",
    }  # fmt: skip
    # ResNet-18 at 224x224: 1.814 G multiply-accumulates per sample (torchvision's model card: 1.81 GFLOPS).
    assert found["macs"] == pytest.approx(32 * 1.814e9, rel=0.005)


def test_estimate_takes_another_input_shape(haq: Haq) -> None:
    one, four = (
        json.loads(haq("estimate", "-s", "resnet18", "-t", "a100", "--bits", "8", "--input", shape, "--json").out)
        for shape in ("3x224x224", "3x448x448")
    )
    # Convolution work goes with the area; the classifier, 512 x 1,000, runs once either way.
    assert four["macs"] == 4 * (one["macs"] - 512_000) + 512_000


def test_estimate_explains_where_the_whole_latency_goes(haq: Haq) -> None:
    arguments = ("estimate", "-s", "resnet18", "-t", "a100", "--bits", "4", "--explain")
    found = json.loads(haq(*arguments, "--json").out)
    times = [part["latency_ms"] for part in found["parts"]]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(found["latency_ms"])
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert "bound by" in haq(*arguments).out


def test_estimate_reads_a_config_of_bits(haq: Haq, tmp_path: Path) -> None:
    uniform = haq("estimate", "-s", "mnist_resnet18", "-t", "reference", "--bits", "8", "--explain", "--json").out
    names = [part["name"] for part in json.loads(uniform)["parts"] if part["kind"] == "layer"]
    config = tmp_path / "bits.json"
    config.write_text(json.dumps(dict.fromkeys(names, 8)))
    again = json.loads(haq("estimate", "-s", "mnist_resnet18", "-t", "reference", "--config", config, "--json").out)
    assert again["size_bytes"] == json.loads(uniform)["size_bytes"]


def test_estimate_takes_finer_scales_for_bit_widths_and_refuses_them_beside_formats(haq: Haq, tmp_path: Path) -> None:
    asked = ("estimate", "-s", "mnist_resnet18", "-t", "reference")
    layers = json.loads(haq(*asked, "--bits", "4", "--explain", "--json").out)["parts"]
    classifier = next(part for part in layers if part["name"] == "fc")
    fine = json.loads(haq(*asked, "--bits", "4", "--group", "64", "--per-token", "--explain", "--json").out)["parts"]
    found = next(part for part in fine if part["name"] == "fc")
    assert (classifier["executed"], found["executed"]) == ("int4/int8", "int4g64/int8t")
    assert found["at_bits"]["8"]["executed"] == "int8/int8t"
    names = [part["name"] for part in layers if part["kind"] == "layer"]
    config = tmp_path / "formats.json"
    config.write_text(json.dumps(dict.fromkeys(names, "int4g64/int8")))
    haq(*asked, "--config", config)
    assert "say their own" in haq.error(*asked, "--config", config, "--group", "64")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-s", "resnet18", "-t", "a10", "--bits", "8"), "'a100'"),
        (("-s", "resnet81", "-t", "a100", "--bits", "8"), "'resnet18'"),
        (("-s", "resnet18", "-t", "a100"), "--bits"),
        (("-s", "resnet18", "-t", "a100", "--bits", "5"), "5"),
        (("-s", "resnet18", "-t", "a100", "--bits", "8", "--input", "3x"), "3x"),
        (("-s", "resnet18", "-t", "a100", "--bits", "8", "--seq-len", "9"), "--seq-len"),
        (("-s", "resnet18", "-t", "a100", "--bits", "8", "--batch", "0"), "batch"),
        (("-s", "resnet18", "-t", "a100", "--config", "absent.json"), "absent.json"),
        (("-s", "resnet18", "-t", "a100", "--bits", "4", "--group", "48"), "'48' is not one of '32', '64', '128'"),
        (("-s", "absent.toml", "-t", "a100", "--bits", "8"), "absent.toml"),
    ],
)
def test_wrong_input_to_estimate_is_one_line(haq: Haq, arguments: tuple[str, ...], says: str) -> None:
    assert says in haq.error("estimate", *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSON"),
        ("[]", "list"),
        ('{"conv9": 8}', "conv1"),
        ('{"conv1": 8}', "layers"),
        ('{"conv1": 5}', "conv1"),
        ('{"schema": "haq.config/v9"}', "haq.config/v1"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(haq: Haq, tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    message = haq.error("estimate", "-s", "resnet18", "-t", "a100", "--config", config)
    assert says in message
    assert "config.json" in message


def test_doctor_and_cache_report_and_clear(haq: Haq, tmp_path: Path) -> None:
    found = json.loads(haq("doctor", "--json").out)
    assert found["cores_usable"] >= 1
    assert "mnist" in found["extras"]
    cached = tmp_path / "cache" / "traces" / "old.json"
    cached.parent.mkdir(parents=True)
    cached.write_text("x" * 1000)
    assert json.loads(haq("cache", "--json").out)["kinds"] == {"traces": 1000}
    assert "0.00 MB in 1 files" in haq("cache", "--clear").out
    assert not cached.exists()


def test_a_wrong_cache_limit_is_one_line(haq: Haq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_LIMIT_MB", "much")
    assert "HAQ_CACHE_LIMIT_MB" in haq.error("cache")


def test_looking_around_imports_neither_torch_nor_optuna_nor_matplotlib(tmp_path: Path) -> None:
    code = """
import sys
from haq.cli import main
for arguments in (["--help"], ["targets"], ["spaces"], ["doctor"], ["cache"], ["search", "--help"]):
    assert main(arguments) == 0, arguments
loaded = {"torch", "optuna", "matplotlib", "transformers", "pandas"} & set(sys.modules)
assert not loaded, loaded
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.returncode == 0, run.stderr


def test_a_second_estimate_of_a_shipped_space_imports_no_torch(tmp_path: Path) -> None:
    code = """
import os, sys
from haq.cli import main
assert main(["estimate", "-s", "resnet18", "-t", "a100", "--bits", "8"]) == 0
print("torch" in sys.modules)
"""
    seen = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", f"import os; os.environ['HAQ_CACHE_DIR'] = {str(tmp_path)!r}\n{code}"],
            check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        seen.append(result.stdout.strip().splitlines()[-1])
    assert seen == ["True", "False"]
