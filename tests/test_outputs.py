"""front.csv and the configs: what a lead and a deployment read."""

import csv
import json
from dataclasses import replace

import pytest
from search_fakes import SampleScores, problem, target, workload

from haq.configfile import executed_assignment, read_config, write_config
from haq.engine.loop import run_search
from haq.engine.problem import SearchOptions
from haq.errors import InputError
from haq.front import front
from haq.outputs import COLUMNS, fronts, write_outputs
from haq.rundir import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    net = workload()
    targets = (target(net), target(net, name="other", no_int4=("d",)))
    out = tmp_path_factory.mktemp("runs") / "run"
    asked = problem(net, targets, SampleScores())
    return read_run(run_search(asked, SearchOptions(trials=20, storage="none"), out))


def rows(run):
    with (run.path / "front.csv").open() as file:
        return list(csv.DictReader(file))


def test_front_csv_has_a_row_per_front_point_and_target_with_units_in_its_names(run):
    table = rows(run)
    assert tuple(table[0]) == COLUMNS
    assert [row["id"] for row in table] == [p.result.config_id for points in fronts(run).values() for p in points]
    assert {row["target"] for row in table} == {"plain", "other"}


def test_front_csv_states_measured_figures_with_intervals_on_both_splits(run):
    point = front(run.history.candidates, "plain")[0]
    row = rows(run)[0]
    assert float(row["size_bytes"]) == 500  # 4 bits everywhere: 1000 weights
    assert float(row["size_change_percent"]) == -87.5
    assert float(row["drop_points"]) == point.result.measurement.drop_points
    assert float(row["drop_low"]) < float(row["drop_points"]) < float(row["drop_high"])
    assert row["validation_samples"] == "200"


def test_what_is_unknown_is_empty_not_zero(run):
    assert rows(run)[0]["energy_mj"] == ""


def test_every_front_point_has_a_config_and_nothing_else_has(run):
    ids = {p.result.config_id for points in fronts(run).values() for p in points}
    assert {path.stem for path in (run.path / "configs").glob("*")} == ids


def test_a_config_says_what_is_executed_what_was_measured_and_where_it_comes_from(run):
    point = front(run.history.candidates, "other")[0]
    config = read_config(run.path / "configs" / f"{point.result.config_id}.json")
    assert executed_assignment(config) == point.result.executed
    assert config["layers"]["d"] == "int8/int8"
    assert config["requested_bits"]["d"] == 4
    assert config["fallbacks"] == [
        {"layer": "d", "requested": "int4/int8", "executed": "int8/int8", "reason": "no int4 kernel"}
    ]
    assert config["model"] == {"model": "chain", "weights_hash": "w0"}
    assert config["target"] == {"name": "other", "batch": 1, "confidence": "facts only", "title": ""}
    assert config["metrics"]["accuracy"]["kind"] == "measured"
    assert config["metrics"]["accuracy"]["split"] == "search"
    assert config["metrics"]["accuracy_validation"]["split"] == "validation"
    assert config["metrics"]["latency_ms"] == {
        "value": point.losses[1], "kind": "modelled", "confidence": "facts only",
    }  # fmt: skip
    assert config["provenance"]["origin"] == point.candidate.origin
    assert config["provenance"]["data_hash"] == "d0"


def test_configs_of_points_that_left_the_front_are_removed(run):
    stale = run.path / "configs" / "stale.json"
    stale.write_text("{}")
    write_outputs(run)
    assert not stale.exists()


def test_an_empty_front_is_a_table_without_rows(run, tmp_path):
    infeasible = tuple(
        replace(c, results=tuple(replace(r, violations=("no",)) for r in c.results)) for c in run.history.candidates
    )
    write_outputs(replace(run, path=tmp_path, history=replace(run.history, candidates=infeasible)))
    assert (tmp_path / "front.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_a_file_that_is_no_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match="cannot read the config"):
        read_config(path)
    path.write_text("{")
    with pytest.raises(InputError, match="config is not JSON"):
        read_config(path)
    path.write_text(json.dumps({"schema": "other/v1"}))
    with pytest.raises(InputError, match="got 'other/v1'"):
        read_config(path)


def test_a_config_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the config"):
        write_config(tmp_path / "file" / "config.json", {})
