"""Tasks: scores per sample, disjoint splits, and users' functions that return what they should not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from haq.accuracy import compare
from haq.errors import InputError
from haq.nn.task import (
    Batch,
    CallableTask,
    ClassificationTask,
    batch_size,
    forward,
    hash_inputs,
    logits_of,
    split_indices,
)


class Echo(nn.Module):
    """Returns its input as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def task(logits: Tensor, labels: list[int]) -> ClassificationTask:
    batch = Batch((logits,), torch.tensor(labels))
    return ClassificationTask({"search": (batch, batch), "validation": ()}, ((logits,),), "hash")


def test_a_sample_scores_one_where_its_largest_logit_is_the_labels() -> None:
    scores = task(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), [1, 1]).scores(Echo(), "search")
    assert scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert scores.dtype == np.float64


def test_a_nan_logit_is_wrong_never_lucky() -> None:
    assert task(torch.tensor([[float("nan"), 2.0]]), [0]).scores(Echo(), "search").tolist() == [0.0, 0.0]


def test_an_unknown_or_empty_split_is_an_error_that_names_it() -> None:
    with pytest.raises(InputError, match="'test'"):
        task(torch.zeros(1, 2), [0]).scores(Echo(), "test")
    with pytest.raises(InputError, match=r"validation.*empty"):
        task(torch.zeros(1, 2), [0]).scores(Echo(), "validation")


def test_logits_of_the_wrong_shape_are_an_error() -> None:
    with pytest.raises(InputError, match="do not fit the labels"):
        task(torch.zeros(1, 2, 3), [0]).scores(Echo(), "search")


def test_logits_are_found_in_hugging_face_outputs_and_tuples() -> None:
    class Output:
        logits = torch.ones(1, 2)

    assert logits_of(Output()) is Output.logits
    assert logits_of((Output.logits, 3)) is Output.logits
    with pytest.raises(InputError, match="holds no logits"):
        logits_of({"a": 1})


def test_inputs_may_be_positional_or_by_keyword() -> None:
    x = torch.zeros(5, 2)
    assert forward(Echo(), (x,)) is x
    assert forward(Echo(), {"x": x}) is x
    assert batch_size((x,)) == batch_size({"x": x}) == 5


@pytest.mark.parametrize("raw", [0.5, torch.tensor(0.5), np.float32(0.5), 1])
def test_a_users_number_comes_back_as_a_float(raw: object) -> None:
    result = CallableTask(lambda m: raw, ()).scores(Echo(), "search")
    assert isinstance(result, float)


def test_a_users_per_sample_scores_come_back_as_an_array_and_validation_uses_its_own_function() -> None:
    mine = CallableTask(lambda m: [1, 0], (), validate=lambda m: torch.tensor([0.0, 0.0]))
    assert np.asarray(mine.scores(Echo(), "search")).tolist() == [1.0, 0.0]
    assert np.asarray(mine.scores(Echo(), "validation")).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("raw", ["good", None, np.zeros((2, 2)), {"accuracy": 1}])
def test_a_user_function_that_returns_neither_number_nor_scores_is_an_error(raw: object) -> None:
    with pytest.raises(InputError, match="neither a number nor"):
        CallableTask(lambda m: raw, ()).scores(Echo(), "search")


def test_a_users_nan_surfaces_when_measurements_are_compared() -> None:
    with pytest.raises(InputError, match="not finite"):
        compare(0.9, CallableTask(lambda m: float("nan"), ()).scores(Echo(), "search"), "search")


def test_the_data_hash_changes_with_content_shape_and_name() -> None:
    x = torch.arange(6.0)
    hashes = {hash_inputs([(x,)]), hash_inputs([(x.view(2, 3),)]), hash_inputs([{"x": x}]), hash_inputs([(x + 1,)])}
    assert len(hashes) == 4
    assert hash_inputs([(x,)]) == hash_inputs([(x.clone(),)])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 9))
def test_splits_are_disjoint_of_the_asked_sizes_and_repeatable(sizes: list[int], seed: int) -> None:
    named = dict(zip("abcd", sizes, strict=False))
    splits = split_indices(sum(sizes) + 3, named, seed)
    assert {name: len(s) for name, s in splits.items()} == named
    everything = [i for s in splits.values() for i in s]
    assert len(set(everything)) == len(everything)
    assert splits == split_indices(sum(sizes) + 3, named, seed)


def test_splits_that_ask_for_too_much_are_an_error() -> None:
    with pytest.raises(InputError, match="together 7"):
        split_indices(6, {"train": 5, "search": 2}, 0)
