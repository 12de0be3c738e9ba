"""Metrics of logits: four samples whose softmax is halves and quarters, and scipy as the second opinion."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from haq.errors import InputError
from haq.nn.metrics import METRICS, Outputs, all_scores, check_classification, report
from haq.quality import AGREEMENT, DIRECTIONS, KL, LOSS, TOP1, WORST_CLASS, QualityReport

FIRST, SECOND, THIRD = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5)
LABELS = torch.tensor([0, 1, 2, 2])
LN2 = math.log(2)


def outputs(*chances: tuple[float, ...], labels: Tensor = LABELS, names: tuple[str, ...] = ()) -> Outputs:
    """Logits whose softmax are these chances, in batches of three and the rest."""
    logits = torch.tensor(chances).log()
    return Outputs(logits.split(3), labels.split(3), names)


FP32 = outputs(FIRST, SECOND, THIRD, FIRST)  # right, right, right, wrong
CANDIDATE = outputs(FIRST, FIRST, SECOND, THIRD)  # right, wrong, wrong, right


def test_each_score_is_what_the_chances_say() -> None:
    found = all_scores(CANDIDATE, FP32)
    assert found[TOP1].tolist() == [1, 0, 0, 1]
    assert found[AGREEMENT].tolist() == [1, 0, 0, 0]
    # The label's chance is 1/2, 1/4, 1/4, 1/2.
    assert found[LOSS] == pytest.approx([LN2, 2 * LN2, 2 * LN2, LN2])
    # Where a half and a quarter change places: 1/2 ln(1/2 : 1/4) + 1/4 ln(1/4 : 1/2) = 1/4 ln 2.
    assert found[KL] == pytest.approx([0, LN2 / 4, LN2 / 4, LN2 / 4], abs=1e-7)


def test_the_report_has_means_directions_and_the_worst_class_with_its_samples() -> None:
    found = report(all_scores(CANDIDATE, FP32), CANDIDATE, FP32)
    assert {f.name: f.direction for f in found.figures} == {**DIRECTIONS, WORST_CLASS: "minimize"}
    assert found.value(TOP1) == 0.5
    assert found.value(LOSS) == pytest.approx(6 * LN2 / 4)
    assert found.value(KL) == pytest.approx(3 * LN2 / 16)
    assert found.value(AGREEMENT) == 0.25
    # Class 2 loses one sample and wins the other; class 1 has one sample, which is lost.
    assert found.classes is not None
    assert found.classes.points == (0.0, 100.0, 0.0)
    assert (found.classes.worst, found.classes.worst_samples, found.value(WORST_CLASS)) == ("1", 1, 100.0)
    assert found.not_finite == 0


def test_fp32_against_itself_loses_nothing() -> None:
    found = report(all_scores(FP32, FP32), FP32, FP32)
    assert [found.value(name) for name in (KL, AGREEMENT, WORST_CLASS)] == [0.0, 1.0, 0.0]
    assert found.value(LOSS) == pytest.approx(5 * LN2 / 4)


def test_a_class_is_called_by_its_name_and_one_without_samples_has_no_drop() -> None:
    labels = torch.tensor([0, 1, 1, 1])
    named = outputs(FIRST, FIRST, SECOND, THIRD, labels=labels, names=("cat", "dog", "eel"))
    fp32 = outputs(FIRST, SECOND, SECOND, SECOND, labels=labels)
    classes = report(all_scores(named, fp32), named, fp32).classes
    assert classes is not None
    assert classes.points == (0.0, pytest.approx(200 / 3), None)
    assert (classes.worst, classes.worst_samples) == ("dog", 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_is_wrong_and_leaves_loss_and_divergence_unknown(value: float) -> None:
    logits = torch.cat(FP32.parts).clone()
    logits[0, 0] = value  # the label's own logit, which argmax would choose where it is inf or NaN
    broken = Outputs((logits,), (LABELS,))
    fp32 = Outputs((torch.cat(FP32.parts),), (LABELS,))
    found = report(all_scores(broken, fp32), broken, fp32)
    assert found.not_finite == 1
    assert found.value(TOP1) == 0.5  # FP32 has 3 of 4
    assert found.value(AGREEMENT) == 0.75
    assert found.value(LOSS) is None
    assert found.value(KL) is None
    assert found.value(WORST_CLASS) == 100.0
    text = json.dumps(found.to_json(), allow_nan=False)
    assert "loss" in text
    assert QualityReport.from_json(json.loads(text)) == found


def test_logits_of_fp16_that_are_large_but_finite_are_exact() -> None:
    big = Outputs((torch.tensor([[6e4, -6e4]], dtype=torch.float16),), (torch.tensor([1]),))
    small = Outputs((torch.zeros(1, 2),), (torch.tensor([1]),))
    found = all_scores(big, small)
    large = float(torch.tensor(6e4, dtype=torch.float16))
    assert found[LOSS].tolist() == [2 * large]
    assert found[KL] == pytest.approx([large - LN2])  # 1/2 (-ln 2 - 0) + 1/2 (-ln 2 + 2 x large)


LOGITS = arrays(np.float32, (5, 4), elements=st.floats(-30, 30, width=32))


@given(LOGITS, LOGITS, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_loss_and_divergence_agree_with_scipy(candidate: np.ndarray, fp32: np.ndarray, labels: list[int]) -> None:
    answer = tuple(torch.tensor(labels).split(2))
    found = all_scores(
        Outputs(torch.from_numpy(candidate).split(2), answer), Outputs(torch.from_numpy(fp32).split(2), answer)
    )
    chances, reference = (softmax(x.astype(np.float64), axis=1) for x in (candidate, fp32))
    assert found[KL] == pytest.approx(rel_entr(reference, chances).sum(axis=1), rel=1e-9, abs=1e-9)
    assert (found[KL] >= 0).all()
    expected = -log_softmax(candidate.astype(np.float64), axis=1)[np.arange(5), labels]
    assert found[LOSS] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "from -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "float32"),
        (torch.zeros(2, 3), torch.tensor([0]), r"\(1,\) labels"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 1]), r"\(2, 3, 4\) logits"),
    ],
)
def test_labels_that_do_not_fit_the_logits_are_one_line(logits: Tensor, labels: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=f"do not fit the labels.*{says}"):
        check_classification(Outputs((logits,), (labels,)), "search")


def test_the_registry_and_the_stated_directions_name_the_same_metrics() -> None:
    assert {name: (metric.name, metric.direction) for name, metric in METRICS.items()} == {
        name: (name, direction) for name, direction in DIRECTIONS.items()
    }
