"""Candidates survive the history file, and config ids name (assignment, target)."""

import json

from haq.accuracy import Interval, Measurement
from haq.candidate import Candidate, Fallback, TargetResult
from haq.precision import Assignment, Precision

INT8, FP32 = Precision.parse("int8/int8"), Precision.parse("fp32")
RESULT = TargetResult(
    "a100",
    Assignment.of({"conv1": INT8, "fc": FP32}),
    (Fallback("conv1", Precision.parse("int4/int4"), INT8, "no int4 convolution kernel"),),
    {"size_bytes": 100.0, "latency_ms": 0.5},
    Measurement("search", 10, 0.9, 10.0, Interval(0.6, 0.98), Interval(-5, 25)),
    ("drop_points 10 exceeds max_drop_points 1",),
)
CANDIDATE = Candidate(3, "tpe", Assignment.of({"conv1": 4, "fc": 32}), (RESULT,))


def test_a_candidate_survives_the_history_file():
    assert Candidate.from_json(json.loads(json.dumps(CANDIDATE.to_json()))) == CANDIDATE


def test_a_config_id_names_the_executed_assignment_and_the_target():
    other = TargetResult("t4", RESULT.executed, (), {})
    wider = TargetResult("a100", Assignment.of({"conv1": FP32, "fc": FP32}), (), {})
    assert len({RESULT.config_id, other.config_id, wider.config_id}) == 3
    assert RESULT.config_id == TargetResult("a100", RESULT.executed, (), {"size_bytes": 1.0}).config_id


def test_the_history_repeats_the_signature_for_readers_without_haq():
    assert CANDIDATE.to_json()["targets"][0]["signature"] == RESULT.executed.signature
