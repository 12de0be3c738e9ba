"""The search spec: TOML and flags in, constraints and the reviewer's brief out, one-line errors on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from haq.cli.options import spec_tables
from haq.constraints import Constraints
from haq.errors import InputError
from haq.report.brief import brief
from haq.spec import Spec, load_spec, spec_from, spec_of_run

FULL = """
[scope]
space = "resnet18"
granularity = "block"
pins = { conv1 = 16, fc = 8 }

[hardware]
targets = ["tpu-v4", "mobile"]
batch = 8

[accuracy]
max_drop_points = 1.5
samples = 512

[latency]
max_ms = { mobile = 5.0 }
max_rise_ms = 1.0

[recovery]
order = [4, 8, 16]
reserve_points = 0.5

[deployment]
kind = "mobile"
max_size_mb = 12
max_memory_mb = 3

[search]
trials = 100
seed = 7
sampler = "nsga2"
timeout_s = 600
"""


def minimal(**more: Any) -> dict[str, Any]:
    return {"scope": {"space": "resnet18"}, "hardware": {"targets": ["a100"]}, **more}


def write(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text)
    return path


def test_limits_reach_each_target_in_the_units_of_the_cost_model(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, FULL), {})
    assert spec.constraints("mobile") == Constraints(
        max_drop_points=1.5 - 0.5,
        max_latency_ms=5.0,
        max_latency_rise_ms=1.0,
        max_size_bytes=12e6,
        max_memory_bytes=3e6,
    )
    assert spec.constraints("tpu-v4").max_latency_ms is None


def test_limits_on_quality_reach_the_constraints_as_upper_limits() -> None:
    accuracy = {"max_class_drop_points": 4, "max_kl_nats": 0.1, "min_agreement": 0.75, "metric": "own.metrics:f1"}
    spec = spec_from(minimal(accuracy=accuracy), where="test")
    assert spec.constraints("a100") == Constraints(max_class_drop_points=4, max_kl_nats=0.1, max_disagreement=0.25)
    assert spec.accuracy.is_metric_external
    assert spec_from(spec.to_json(), where="test") == spec
    assert "max_class_drop_points" not in spec_from(minimal(), where="test").to_json()["accuracy"]


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [
        ({"metric": "loss"}, "at most 1 points above FP32; metric loss, minimized"),
        ({"metric": "a.b:f1"}, "metric a.b:f1, in its own direction"),
        ({"metric": "a.b:f1", "direction": "minimize"}, "100 x (candidate - FP32) of a.b:f1"),
        ({"metric": "f1", "direction": {"f1": "maximize"}}, "below FP32; metric f1, maximized"),
        ({}, "metric of the task, in its own direction"),
    ],
)
def test_the_brief_says_what_drives_the_search_and_which_way(accuracy: dict[str, Any], says: str) -> None:
    assert says in brief(spec_from(minimal(accuracy={"max_drop_points": 1, **accuracy}), where="test"))


def test_only_scope_and_hardware_are_needed() -> None:
    spec = spec_from(minimal(), where="test")
    assert spec.constraints("a100") == Constraints()
    assert spec.hardware.batch == 1


def test_flags_override_the_keys_of_the_file(tmp_path: Path) -> None:
    spec = load_spec(
        write(tmp_path, FULL), {"hardware": {"targets": ("tpu-v4", "mobile", "a100")}, "search": {"seed": 1}}
    )
    assert spec.hardware.targets == ("tpu-v4", "mobile", "a100")
    assert (spec.search.seed, spec.search.trials) == (1, 100)


def test_the_resolved_spec_reads_back_as_itself(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, FULL), {})
    assert spec_from(spec.to_json(), where="run.json") == spec


def test_a_run_races_unless_it_says_no_and_a_run_of_before_racing_did_not() -> None:
    raced = spec_from(minimal(), where="test")
    plain = spec_from(minimal(search={"racing": False}), where="test")
    assert raced.search.racing
    # The same JSON as before there was the key, so that such a run is gone on with as the same search.
    assert "racing" not in plain.to_json()["search"]
    for spec in (raced, plain):
        assert spec_of_run(spec.to_json(), where="run.json") == spec
    assert spec_tables({"racing": False, "seed": None}) == {"search": {"racing": False}}
    assert "stopped early" in brief(raced)
    assert "every candidate measured in full" in brief(plain)


def test_a_model_without_a_colon_names_a_space() -> None:
    spec = spec_from({"scope": {"model": "resnet18"}, "hardware": {"targets": ["a100"]}}, where="test")
    assert (spec.scope.space, spec.scope.model) == ("resnet18", None)


def test_paths_in_a_spec_are_relative_to_it_and_names_stay_names(tmp_path: Path) -> None:
    text = '[scope]\nspace = "mine.toml"\nweights = "w.pt"\n[hardware]\ntargets = ["a100"]\n'
    scope = load_spec(write(tmp_path, text), {}).scope
    assert (scope.space, scope.weights) == (str(tmp_path / "mine.toml"), str(tmp_path / "w.pt"))
    assert load_spec(write(tmp_path, FULL), {}).scope.space == "resnet18"


@pytest.mark.parametrize(
    ("section", "table", "says"),
    [
        ("accuracy", {"max_drop": 1}, "max_drop_points"),
        ("accuracy", {"max_drop_points": -1}, "max_drop_points"),
        ("accuracy", {"max_drop_points": float("nan")}, "max_drop_points"),
        ("latency", {"max_ms": {"tpu-v4": 1.0}}, "tpu-v4"),
        ("latency", {"max_ms": -1}, "max_ms"),
        ("latency", {"max_ms": "fast"}, "max_ms"),
        ("latency", {"max_rise_ms": {"a100": float("inf")}}, "max_rise_ms"),
        ("recovery", {"order": [8, 4]}, "order"),
        ("recovery", {"order": [4, 6]}, "order"),
        ("recovery", {"reserve_points": 0.5}, "reserve_points"),
        ("deployment", {"kind": "laptop"}, "kind"),
        ("deployment", {"formats": ["tflight"]}, "formats"),
        ("search", {"trials": 0}, "trials"),
        ("search", {"sampler": "tpa"}, "sampler"),
        ("scope", {"space": "resnet18", "pins": {"fc": 5}}, "pins"),
        ("hardware", {"targets": []}, "targets"),
        ("acuracy", {}, "accuracy"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(section: str, table: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        spec_from(minimal(**{section: table}), where="spec.toml")
    assert says in str(caught.value)
    assert "spec.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_sections_are_named() -> None:
    with pytest.raises(InputError, match="hardware"):
        spec_from({"scope": {"space": "resnet18"}}, where="command line")


def test_the_brief_names_every_part_and_every_number_that_was_set(tmp_path: Path) -> None:
    text = brief(load_spec(write(tmp_path, FULL), {}))
    for title in ("Scope", "Hardware", "Accuracy", "Latency", "Recovery", "Deployment", "Search"):
        assert title in text
    numbers = (
        "batch 8",
        "1.5 points",
        "512 samples",
        "5 ms",
        "1 ms above FP32",
        "0.5 points",
        "12 MB",
        "3 MB",
        "600 s",
    )
    for part in ("resnet18", "per block", "conv1 = 16 bits", "4 -> 8 -> 16 bits", "100 trials of nsga2", *numbers):
        assert part in text


def test_natural_groups_are_the_default_and_the_brief_names_only_their_absence() -> None:
    assert spec_from(minimal(), where="test").scope.grouping == "natural"
    assert "groups" not in brief(spec_from(minimal(), where="test"))
    apart = load_spec(None, spec_tables({"space": "resnet18", "target": ("a100",), "grouping": "none"}))
    assert "no natural groups" in brief(apart)
    with pytest.raises(InputError, match="grouping"):
        load_spec(None, spec_tables({"space": "resnet18", "target": ("a100",), "grouping": "all"}))


def test_the_brief_of_a_bare_spec_claims_no_limits() -> None:
    text = brief(Spec.model_validate(minimal()))
    assert "no limit on the drop" in text
    assert "at most" not in text


def test_a_spec_can_name_every_format_that_can_be_exported():
    from haq.export import EXPORTERS
    from haq.spec import EXPORT_FORMATS

    assert set(EXPORT_FORMATS) == set(EXPORTERS)
