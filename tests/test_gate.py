"""The gate's arithmetic: which artifacts pass, and the sentence for each that does not."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from haq.precision import Assignment, Precision
from haq.quality import TOP1, MainMetric
from haq.verify.evidence import Answers, Evidence, Latency
from haq.verify.gate import Gate, Limits, failed, judge

ASKED = Assignment.of({n: Precision.parse(p) for n, p in (("a", "int8/int8"), ("b", "int4/int8"), ("c", "fp32"))})
RIGHT = np.r_[np.ones(900), np.zeros(100)]
METRIC = MainMetric(TOP1)


def answers(artifact: Any = RIGHT, **more: Any) -> Answers:
    known = {"agreement": 0.995, "largest_error": 0.01, "largest_output": 10.0}
    return Answers("search", METRIC, artifact, RIGHT, **{**known, **more})


def evidence(**changes: Any) -> Evidence:
    latency = Latency((3.0, 1.0, 2.0), 1, "mobile", "a CPU", 0.5)
    good = Evidence(1_100_000, 1_010_000, 1_000_000, answers(), ASKED, dict(ASKED.entries), latency)  # type: ignore[arg-type]
    return dataclasses.replace(good, **changes)


def line(gate: Gate, check: str) -> Any:
    return next(one for one in gate.lines if one.check == check)


def test_an_artifact_as_promised_passes_every_line() -> None:
    gate = judge(evidence(), Limits())
    assert gate.passed
    assert gate.faults == ()
    assert line(gate, "stored numbers").values["gap"] == pytest.approx(0.01)
    assert line(gate, "latency").values["latency_ms"] == 2.0  # the median of 1, 2 and 3
    assert line(gate, "latency").passed is None  # a modelled phone says nothing about this machine
    assert line(gate, "file size").passed is None


@pytest.mark.parametrize("sign", [1, -1])
def test_accuracy_may_differ_by_the_limit_either_way(sign: int) -> None:
    moved = RIGHT.copy()
    start = 897 if sign == 1 else 900
    moved[start : start + 3] = 0.0 if sign == 1 else 1.0  # three of a thousand: 0.3 points
    assert judge(evidence(answers=answers(moved)), Limits()).passed
    moved[start - 1 if sign == 1 else start + 3] = 0.0 if sign == 1 else 1.0
    gate = judge(evidence(answers=answers(moved)), Limits())
    accuracy = "89.60 %" if sign == 1 else "90.40 %"
    assert gate.faults == (
        f"accuracy: {accuracy} on search, the simulation has 90.00 % (0.40 points apart, limit 0.3)",
    )
    assert line(gate, "accuracy").values["gap_points"] == pytest.approx(0.4 * sign)
    assert judge(evidence(answers=answers(moved)), Limits(accuracy_gap_points=0.5)).passed


def test_the_gap_has_the_paired_interval() -> None:
    moved = RIGHT.copy()
    moved[:4] = 0.0
    # Agresti and Min: 4.5 lost, 0.5 gained of 1,002; 100 x (4 +- 1.96 sqrt(5 - 16 / 1002)) / 1002
    half = 1.959963984540054 * np.sqrt(5 - 16 / 1002)
    found = line(judge(evidence(answers=answers(moved)), Limits()), "accuracy").values["gap_interval"]
    assert found == pytest.approx({"low": 100 * (4 - half) / 1002, "high": 100 * (4 + half) / 1002})


def test_a_metric_that_is_minimized_is_worse_where_it_is_larger() -> None:
    loss = Answers("search", MainMetric("loss", "minimize", False), np.full(10, 0.51), np.full(10, 0.50))
    gate = judge(evidence(answers=loss), Limits())
    assert line(gate, "loss").values["gap_points"] == pytest.approx(1.0)
    assert gate.faults[0].startswith("loss: 0.51 on search, the simulation has 0.5 (1.00 points apart")


def test_one_number_without_samples_has_no_interval() -> None:
    gate = judge(evidence(answers=Answers("search", METRIC, 0.9, 0.9)), Limits())
    assert gate.passed
    assert "gap_interval" not in line(gate, "accuracy").values
    assert [one.check for one in gate.lines if one.check in ("agreement", "largest output error")] == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"initializer_bytes": 1_040_000}, "size: the stored numbers take 1.040 MB, the config promises 1.000 MB "
         "(+4.0 %, limit 3 %)"),
        ({"initializer_bytes": 960_000}, "size: the stored numbers take 0.960 MB, the config promises 1.000 MB "
         "(-4.0 %, limit 3 %)"),
        ({"answers": answers(agreement=0.98)},
         "agreement: only 98.00 % of the answers are the simulation's, limit 99 %"),
        ({"answers": answers(np.full(1000, np.nan))}, "accuracy: nan % on search, the simulation has 90.00 % "
         "(nan points apart, limit 0.3)"),
        ({"realised": {**dict(ASKED.entries), "a": Precision.parse("fp32")}},
         "layer a runs in fp32, config says int8/int8"),
        ({"realised": {**dict(ASKED.entries), "b": Precision.parse("int8/int8")}},
         "layer b runs in int8, config says int4/int8"),
        ({"realised": {"a": ASKED["a"], "b": None}},
         "no such layer in the artifact, or none that tells its precision: b, c"),
        ({"arithmetic": {"a": "int8", "b": "fp32", "c": "int8"}}, "layer c runs in int8, config says fp32/fp32"),
        ({"scales": {("a", "weight"): (np.array([0.1, 0.2]), np.array([0.2, 0.4]))}},
         "layer a: scale differs from the config's by 2x"),
        ({"scales": {("a", "operand 0"): (np.array(0.1), np.array(0.05))}},
         "layer a: scale of operand 0 differs from the config's by 0.5x"),
        ({"scales": {("a", "weight"): (np.ones(8), np.ones(1))}}, "layer a: scale is 1 numbers, the config's 8"),
        ({"other_codes": {"a": (0, 8), "b": (3, 16)}}, "layer b: codes differ from the config's in 3 of 16 channels"),
    ],
)  # fmt: skip
def test_each_fault_has_its_sentence(change: dict[str, Any], fault: str) -> None:
    gate = judge(evidence(**change), Limits())
    assert gate.faults == (fault,)
    assert not gate.passed
    raw = gate.to_json()
    json.dumps(raw, allow_nan=False)
    assert (raw["passed"], raw["faults"]) == (False, [fault])


def test_limits_can_be_moved() -> None:
    assert judge(evidence(initializer_bytes=1_040_000), Limits(size_gap=0.05)).passed
    assert judge(evidence(answers=answers(agreement=0.98)), Limits(agreement=0.9)).passed
    assert judge(evidence(), Limits(latency_ms=2.0)).passed
    assert judge(evidence(), Limits(latency_ms=1.9)).faults == ("latency: 2 ms (median of 3), limit 1.9 ms",)


def test_rounding_of_scales_is_no_difference() -> None:
    asked = np.array([0.1, 0.2])
    same = {("a", "weight"): (asked, asked.astype(np.float32).astype(np.float64))}
    assert judge(evidence(scales=same), Limits()).passed


def test_what_runs_wider_is_named_and_fails_nothing() -> None:
    gate = judge(evidence(arithmetic={"a": "int8", "b": "fp32", "c": "fp32"}), Limits())
    assert gate.passed
    wider = line(gate, "runs wider here")
    assert (wider.measured, wider.against) == ("1 of 3 layers", "int4/int8 in fp32: b")


def test_a_size_that_is_not_promised_is_not_judged() -> None:
    assert line(judge(evidence(promised_bytes=None), Limits()), "stored numbers").passed is None


def test_what_cannot_be_opened_fails_with_its_sentence() -> None:
    gate = failed("model.onnx: not a whole ONNX file")
    assert (gate.passed, gate.faults) == (False, ("model.onnx: not a whole ONNX file",))
