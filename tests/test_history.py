"""The history file: exact round trips, half lines, damage, and what is counted."""

import json

import numpy as np
import pytest

from haq.accuracy import compare
from haq.candidate import Candidate, TargetResult
from haq.errors import InputError
from haq.history import Baseline, HistoryWriter, read_history, summarize
from haq.precision import Assignment, Precision

FP32 = Assignment.of({"a": Precision.parse("fp32")})
INT8 = Assignment.of({"a": Precision.parse("int8")})
RIGHT = np.array([1.0, 1.0, 1.0, 0.0])


def baseline():
    measured = {split: compare(RIGHT, RIGHT, split) for split in ("search", "validation")}
    return Baseline(FP32.signature, dict.fromkeys(measured, RIGHT), measured, {"t": {"size_bytes": 0.1 + 0.2}})


def candidate(number=0, executed=INT8, scores=RIGHT):
    measurement = None if scores is None else compare(RIGHT, scores, "search")
    result = TargetResult("t", executed, (), {"size_bytes": 1.5, "latency_ms": 1 / 3}, measurement)
    return Candidate(number, "tpe", Assignment.of({"a": 8}), (result,))


def write(path, *candidates):
    writer = HistoryWriter(path)
    writer.append("baseline", baseline().to_json(), measure_s=2.0)
    for item in candidates:
        writer.append("candidate", item.to_json(), measure_s=0.5)
    writer.close()


def test_what_is_written_is_read_back_exactly(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, candidate())
    history = read_history(path)
    assert history.candidates == (candidate(),)
    assert history.baseline.measurements == baseline().measurements
    assert history.baseline.costs == baseline().costs
    assert (history.baseline.scores["search"] == RIGHT).all()
    assert history.seconds == 2.5


def test_a_missing_file_is_an_empty_history(tmp_path):
    assert read_history(tmp_path / "none").candidates == ()


def test_a_half_written_last_line_is_left_out_and_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, candidate(0), candidate(1))
    path.write_bytes(path.read_bytes()[:-7])
    assert [c.number for c in read_history(path).candidates] == [0]
    writer = HistoryWriter(path)
    writer.append("candidate", candidate(5).to_json())
    writer.close()
    assert [c.number for c in read_history(path).candidates] == [0, 5]


def test_a_damaged_line_is_refused_with_its_number(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, candidate(0))
    path.write_text("{half\n" + path.read_text())
    with pytest.raises(InputError, match="line 1"):
        read_history(path)


def test_a_record_is_in_the_file_when_append_returns(tmp_path):
    path = tmp_path / "history.jsonl"
    writer = HistoryWriter(path)
    writer.append("candidate", candidate().to_json())
    assert json.loads(path.read_text())["number"] == 0
    writer.close()


def test_what_a_power_failure_can_take_was_written_within_a_second(tmp_path, monkeypatch):
    """The clock goes 0.4 s per record: after the first on the disk every third one goes there, with those before."""
    synced = []
    path = tmp_path / "history.jsonl"
    monkeypatch.setattr("haq.history.os.fsync", lambda handle: synced.append(len(path.read_bytes().splitlines())))
    monkeypatch.setattr("haq.history.time.monotonic", lambda: 0.4 * len(path.read_bytes().splitlines()))
    writer = HistoryWriter(path)
    for number in range(8):
        writer.append("candidate", candidate(number).to_json())
    assert synced == [1, 4, 7]
    writer.close()
    assert synced[-1] == 8


def test_one_measurement_per_set_of_executed_formats_is_counted_with_its_samples(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, candidate(0), candidate(1), candidate(2, FP32), candidate(3, Assignment.of({"a": 4}), None))
    summary = summarize(read_history(path))
    assert summary.candidates == 4
    assert summary.infeasible == 1
    assert summary.measurements == 3  # FP32 on two splits and int8; the candidate that executes FP32 is known
    assert summary.sample_forwards == 3 * 4


def test_the_validation_of_fp32_is_the_baselines(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path)
    history = read_history(path)
    assert history.validation(FP32.signature) == baseline().measurements["validation"]
    assert history.validation(INT8.signature) is None
