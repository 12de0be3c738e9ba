"""A cut search split keeps the right samples with their labels, also where batches differ in width."""

import pytest
import torch

from haq.errors import InputError
from haq.nn.subset import cut_search_split
from haq.nn.task import Batch, CallableTask, ClassificationTask


def task():
    """Three batches of 4, 3 and 3 token rows, of widths 2, 5 and 3; the first token is the sample's number."""
    batches, start = [], 0
    for size, width in ((4, 2), (3, 5), (3, 3)):
        numbers = torch.arange(start, start + size)
        batches.append(Batch({"ids": numbers[:, None].expand(-1, width)}, 100 + numbers))
        start += size
    return ClassificationTask({"search": tuple(batches), "validation": tuple(batches)}, (), "hash")


@pytest.mark.parametrize(("samples", "kept"), [(5, [0, 2, 4, 6, 8]), (3, [0, 3, 6]), (10, list(range(10)))])
def test_every_so_manieth_sample_stays_with_its_label(samples, kept):
    cut = cut_search_split(task(), samples)
    assert [int(i) for batch in cut.splits["search"] for i in batch.inputs["ids"][:, 0]] == kept
    assert [int(i) - 100 for batch in cut.splits["search"] for i in batch.labels] == kept
    assert sum(len(batch.labels) for batch in cut.splits["validation"]) == 10


def test_a_task_that_measures_by_itself_is_not_cut():
    with pytest.raises(InputError, match=r"accuracy\.samples: this task measures by itself"):
        cut_search_split(CallableTask(lambda model: 1.0, ()), 5)
