"""Applies the techniques that change a model before it is calibrated and leave what it computes the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from haq.nn.ptq.cle import equalized
from haq.nn.ptq.smoothquant import smoothed
from haq.nn.task import Inputs
from haq.techniques import Stack
from haq.workload import Workload


def restructured(model: nn.Module, workload: Workload, stack: Stack, batches: Sequence[Inputs]) -> nn.Module:
    """The folded model after the stack's structural techniques; the model itself where it has none.

    The workload stays true: layers keep their names, shapes and order.
    """
    if "cle" in stack:
        model = equalized(model, batches)
    if "smoothquant" in stack:
        model = smoothed(model, workload, batches)
    return model
