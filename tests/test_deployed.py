"""What artifacts measured, in the history and as rows that a profile is fitted to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from haq.accuracy import Interval, Measurement
from haq.deployed import rows_of_run, shipped_rows, write_rows
from haq.deployments import Deployment
from haq.errors import InputError
from haq.fitting import calibrate
from haq.hardware.measurements import read_measurements
from haq.history import HistoryWriter, read_history
from haq.rundir import continued_run
from haq.spacefile import load_space
from haq.tracecache import workload_of

PROFILE = Path(__file__).parents[1] / "experiments" / "measured_cpu" / "results" / "this_machine.toml"
FOUND = Deployment(
    config="abc", target="this_machine", format="onnx-qdq", runtime="ONNX Runtime 1.32.0, CPUExecutionProvider",
    machine="a CPU, 2 threads", artifact_sha256="0" * 64, initializer_bytes=10, file_bytes=12, batch=1, latency_ms=2.5,
    measurement=Measurement("search", 4, 0.75, 25.0, Interval(0.3, 0.95), Interval(-20.0, 60.0)), simulated=0.75,
    passed=True, modelled_ms=2.0,
)  # fmt: skip


def run_with(folder: Path, *deployments: Deployment, space: str = "mnist_resnet18") -> Path:
    folder.mkdir(exist_ok=True)
    info = {"schema": "haq.run/v1", "spec": {"scope": {"space": space}}, "targets": {}, "provenance": {}}
    (folder / "run.json").write_text(json.dumps(info))
    with continued_run(folder) as opened:
        for deployment in deployments:
            opened.writer.append("deployment", deployment.to_json())
    return folder


def test_the_history_keeps_deployments_and_the_latest_of_a_config_counts(tmp_path: Path) -> None:
    later = dataclasses.replace(FOUND, latency_ms=3.0, modelled_ms=None, measurement=Measurement("search", 1, 0.5, 0.0))
    run_with(tmp_path, FOUND, later)
    history = read_history(tmp_path / "history.jsonl")
    assert history.deployments == (FOUND, later)
    assert history.deployment("abc") == later
    assert history.deployment("other") is None


def test_only_one_process_writes_to_a_run(tmp_path: Path) -> None:
    run_with(tmp_path)
    with (
        continued_run(tmp_path),
        pytest.raises(InputError, match="another process is writing"),
        continued_run(tmp_path),
    ):
        pass
    with pytest.raises(InputError, match="not a run directory"), continued_run(tmp_path / "absent"):
        pass


def test_a_record_after_a_half_written_line_is_whole(tmp_path: Path) -> None:
    run_with(tmp_path, FOUND)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"kind": "depl')
    HistoryWriter(tmp_path / "history.jsonl").close()
    run_with(tmp_path, FOUND)
    assert read_history(tmp_path / "history.jsonl").deployments == (FOUND, FOUND)


def test_rows_are_of_artifacts_that_passed_and_survive_a_table_elsewhere(tmp_path: Path) -> None:
    failed = dataclasses.replace(FOUND, passed=False)
    run = run_with(tmp_path / "run", failed, FOUND)
    (row,) = rows_of_run(run)
    assert (row.id, row.space, row.latency_ms, row.precision) == (
        "abc-1",
        "mnist_resnet18",
        2.5,
        "deployments/abc.json",
    )
    assert write_rows(run, tmp_path / "tables" / "rows.csv") == 1
    (read,) = read_measurements(tmp_path / "tables" / "rows.csv")
    assert read == row.model_copy(update={"precision": "../run/deployments/abc.json"})
    with pytest.raises(InputError, match="no artifact of the run was measured"):
        rows_of_run(run_with(tmp_path / "other", failed))


def test_a_profile_is_fitted_to_what_a_run_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    run = run_with(tmp_path / "run", FOUND, dataclasses.replace(FOUND, latency_ms=2.7))
    layers = workload_of(load_space("mnist_resnet18")).layer_names
    (run / "deployments").mkdir()
    (run / "deployments" / "abc.json").write_text(json.dumps(dict.fromkeys(layers, 8)))
    (result,) = calibrate(str(PROFILE), run).results
    assert [(row.id, row.latency_s) for row in result.observations] == [("abc-0", 2.5e-3), ("abc-1", 2.7e-3)]


def test_no_code_is_loaded_because_a_run_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"came from outside haq; got './own.toml'.*--measurements FILE.csv"):
        shipped_rows(run_with(tmp_path, FOUND, space="./own.toml"))
