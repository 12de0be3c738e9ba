"""Measuring a split look by look: the same figures as at once, and fair estimates where it is stopped."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.accuracy import Failure
from haq.nn.hardness import label_margins, margins
from haq.nn.judge import Judge, choose_driver
from haq.nn.metrics import Outputs, report
from haq.nn.task import Batch, CallableTask, ClassificationTask, regrouped
from haq.quality import AGREEMENT, KL, LOSS, TOP1, WORST_CLASS


class Bag(nn.Module):
    """Logits of three classes from a text's tokens, padding (0) left out."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn((50, 3), generator=generator)
        self.shift = shift * torch.randn((50, 3), generator=generator)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (self.table + self.shift)[input_ids].mul((input_ids > 0)[..., None]).sum(dim=1)


def texts(widths=(5, 9, 5, 13), size=64):
    generator = torch.Generator().manual_seed(2)
    batches = []
    for width in widths:
        ids = torch.randint(1, 50, (size, width), generator=generator)
        answers = Bag()(ids).argmax(dim=1)
        wrong = torch.rand(size, generator=generator) < 0.15
        batches.append(Batch({"input_ids": ids}, torch.where(wrong, (answers + 1) % 3, answers)))
    return ClassificationTask({"search": tuple(batches), "validation": tuple(batches)}, (), "texts")


TASK = texts()


def judge(metric=None, task=TASK):
    return Judge(task, choose_driver(task, None, metric, None), Bag)


@pytest.mark.parametrize("metric", [TOP1, AGREEMENT, LOSS, KL])
def test_a_race_to_the_end_reads_what_one_pass_reads(metric):
    model = Bag(0.3)
    at_once = judge(metric)(model, "search")
    raced = judge(metric).race(model, "search", lambda look: False)
    assert raced.look is None
    assert raced.scores == pytest.approx(at_once.scores, abs=1e-6)
    assert raced.is_continuous == at_once.is_continuous
    for name in (LOSS, KL, AGREEMENT, WORST_CLASS):
        assert raced.report.value(name) == pytest.approx(at_once.report.value(name), abs=1e-6)


@pytest.mark.parametrize("metric", [TOP1, KL])
def test_each_look_holds_the_scores_of_its_samples(metric):
    model, looks = Bag(0.3), []
    every = judge(metric)(model, "search").scores
    judge(metric).race(model, "search", lambda look: looks.append(look) or False)
    assert [len(look.samples) for look in looks] == [32, 48, 64, 96, 128, 192]  # of 256; a sixteenth is too few
    for look in looks:
        assert look.scores == pytest.approx(every[look.samples], abs=1e-6)
        assert look.of_samples == 256
        assert look.is_continuous == (metric == KL)
        assert look.is_hard.any() == (metric == TOP1 and len(look.samples) > 32)


def test_a_stopped_race_estimates_all_figures_for_the_whole_split():
    model = Bag(0.3)
    whole = judge()(model, "search").report
    raced = judge().race(model, "search", lambda look: len(look.samples) >= 128)
    assert len(raced.look.samples) == len(raced.scores) == 128
    assert raced.report.value(TOP1) is None  # it drives, and stands in the measurement
    assert raced.report.value(AGREEMENT) == pytest.approx(whole.value(AGREEMENT), abs=0.05)
    assert raced.report.value(KL) == pytest.approx(whole.value(KL), rel=0.5)
    # Hard samples agree less: had each counted as one, agreement would look worse than it is.
    plain = np.mean(judge(AGREEMENT)(model, "search").scores[raced.look.samples])
    assert plain < raced.report.value(AGREEMENT)


def test_weights_count_a_sample_as_many():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 0, 1])
    outputs, fp32 = Outputs((logits,), (labels,)), Outputs((torch.tensor([[2.0, 0.0]] * 3),), (labels,))
    scores = {TOP1: np.array([1.0, 0.0, 0.0]), AGREEMENT: np.array([1.0, 0.0, 1.0])}
    found = report(scores, outputs, fp32, np.array([1.0, 3.0, 4.0]))
    assert found.value(AGREEMENT) == (1 + 4) / 8
    assert found.classes.points == (100 * 3 / 4, 0.0)  # of class 0, FP32 gets 1 + 3 right and the candidate 1
    assert found.classes.worst_samples == 2


def test_a_race_for_a_loss_ends_at_the_first_look_with_infinite_outputs():
    model = Bag()
    model.table = model.table.clone()
    model.table[1:] = torch.inf
    found = judge(LOSS).race(model, "search", lambda look: False)
    assert isinstance(found, Failure)
    assert found.samples == 32


def test_only_tasks_that_answer_for_samples_race_and_only_for_metrics_of_haq():
    assert judge().can_race
    own = CallableTask(lambda model: 0.5, ())
    assert not Judge(own, choose_driver(own, None, None, None), Bag).can_race


@given(st.lists(st.integers(0, 255), min_size=1, max_size=80, unique=True))
def test_regrouped_batches_hold_the_samples_asked_for_in_one_shape_each(samples):
    asked = np.array(samples)
    batches, order = regrouped(TASK.splits["search"], asked)
    ids = [row for b in TASK.splits["search"] for row in b.inputs["input_ids"]]
    labels = torch.cat([b.labels for b in TASK.splits["search"]])
    found = [row for b in batches for row in b.inputs["input_ids"]]
    assert all(len(b.labels) <= 64 for b in batches)
    assert len(found) == len(samples)
    for row, label, number in zip(found, torch.cat([b.labels for b in batches]), asked[order], strict=True):
        assert torch.equal(row, ids[number])
        assert label == labels[number]


def test_samples_are_answered_in_the_order_asked():
    asked = np.array([200, 3, 70, 1])
    every = TASK.outputs(Bag(), "search")
    found = TASK.outputs_of(Bag(), "search", asked)
    assert torch.allclose(torch.cat(found.parts), torch.cat(every.parts)[asked], atol=1e-6)
    assert torch.equal(torch.cat(found.labels), torch.cat(every.labels)[asked])


def test_images_keep_the_order_of_axes_that_a_cpu_is_fast_in():
    images = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    batches, _ = regrouped((Batch((images,), torch.zeros(8)), Batch((images,), torch.zeros(8))), np.array([9, 2, 5]))
    assert batches[0].inputs[0].is_contiguous(memory_format=torch.channels_last)


def test_margins_are_distances_to_another_answer():
    fp32 = Outputs((torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]),), (torch.tensor([0, 2]),))
    assert margins(fp32).tolist() == [2.0, 2.0]
    assert label_margins(fp32).tolist() == [2.0, 3.0]  # the second becomes right only when its 0 passes the 3
