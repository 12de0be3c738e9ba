"""How rows of the detection runs are counted: what is a hit, what is a false finding, and what is left out."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "diagnose"))

import confusion

A, B, C = "activation-outliers", "biased-error", "no-speedup"


def row(modes="", *, layers="x", strengths="1", right="", found="", false="", measurable=True, target="", note=""):
    name = f"net/{modes or 'healthy'}/{layers}/{strengths}"
    return {
        "case": name, "base": "int8", "modes": modes, "layers": layers if modes else "", "strengths": strengths,
        "target": target, "harm_nats": "" if target or note else "0.1", "measurable": str(measurable), "right": right,
        "found": found, "false_modes": false, "note": note,
    }  # fmt: skip


ROWS = [
    row(measurable=False),
    row(A, right="True", found=f"{A}@x 0.1"),
    row(A, layers="y", right="True", found=f"{A}@y 0.1; {B}@y 0.1", false=B),
    row(A, layers="z", right="False", found=f"{A}@x 0.1", false=A),
    row(A, layers="w", measurable=False),
    row(A, layers="v", measurable=False, note="cannot be planted"),
    row(B, layers="y", right="False"),
    row(C, right="True", found=f"{C}@x", target="a100", note="figures change by 2 %"),
    row(f"{A} + {B}", layers="x + y", strengths="1 + 1", right="True", found=f"{A}@x 0.1; {B}@y 0.1"),
    row(f"{A} + {B}", layers="w + y", strengths="1 + 1", right="False", found=f"{B}@y 0.1"),
]


def rates(question, mode, network="all"):
    return next(
        r for r in confusion.rates(ROWS) if (r["question"], r["mode"], r["network"]) == (question, mode, network)
    )


def test_the_matrix_counts_hits_false_findings_and_the_right_mode_elsewhere():
    matrix = confusion.confusion(ROWS)
    assert matrix[A] == matrix[A] | {A: 2, B: 1, confusion.ELSEWHERE: 1, confusion.NOTHING: 0}
    assert matrix[B] == matrix[B] | {B: 0, confusion.NOTHING: 1}
    assert matrix["healthy int8"][confusion.NOTHING] == 1
    assert C not in matrix[A]
    assert A not in matrix[C]


def test_what_is_not_measurable_or_not_plantable_is_counted_apart():
    found = rates("detected", A)
    assert (found["cases"], found["not_plantable"], found["not_measurable"], found["counted"]) == (5, 1, 1, 3)
    assert (found["hits"], found["rate"]) == (2, "0.6667")
    # Wilson 1927 at 2 of 3: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n)
    assert (found["low"], found["high"]) == ("0.2077", "0.9385")


def test_a_pair_counts_where_each_of_its_faults_is_measurable_alone():
    found = rates("both found", "all")
    assert (found["cases"], found["not_measurable"], found["counted"], found["hits"]) == (2, 1, 1, 1)


def test_false_findings_are_of_healthy_cases_and_other_modes_that_the_detector_looked_at():
    found = rates("false finding of the mode", B)
    assert (found["counted"], found["hits"]) == (4, 1)
    assert rates("false finding of the mode", C)["counted"] == 0
    assert "rate" not in rates("false finding of the mode", C)
    anywhere = rates("any false finding", "all")
    assert (anywhere["counted"], anywhere["hits"]) == (6, 2)


@pytest.mark.parametrize("question", confusion.ASKED)
def test_every_question_says_what_was_asked_of_it(question):
    assert rates(question, "all" if question != "false finding of the mode" else A)["asked"]
