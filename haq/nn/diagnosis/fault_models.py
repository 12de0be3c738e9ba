"""Plants faults in an FP32 network by rescaling, which leaves what it computes: they show once it is made narrower."""

from __future__ import annotations

import numpy as np
from torch import nn

from haq.errors import InputError
from haq.nn.calibrate import observed
from haq.nn.diagnosis.rescaling import beyond_fp16, channels, check_same, octaves, pair_of, rescaled
from haq.nn.task import Inputs
from haq.nn.trace import trace
from haq.workload import Workload


def traced(what: object, batch: Inputs | None) -> Workload:
    """The network's workload; raises InputError on what is no network, and without inputs for it."""
    if not isinstance(what, nn.Module):
        raise InputError(
            "no faults can be planted in this", where="inject", got=type(what).__name__,
            expected="a Subject, an nn.Module or a config's content",
        )  # fmt: skip
    if batch is None:
        raise InputError(
            "a network alone does not say what it runs on", where="inject", expected="example=, a batch of its inputs"
        )
    return trace(what, batch, name=type(what).__name__)


def imbalanced(
    model: nn.Module, workload: Workload, batch: Inputs, layer: str, drawn: tuple[float, np.random.Generator]
) -> nn.Module:
    """The layer's channels scaled down, to 1 / strength at most, and its readers' weights up: what equalization undoes.

    drawn: strength and randomness. Weights with one scale, activations between, and readers' weights all suffer.
    """
    pair = pair_of(model, workload, batch, layer)
    spec = next(spec for spec in workload.layers if spec.name == layer)
    made = rescaled(model, workload, pair, octaves(channels(spec), *drawn))
    check_same(model, made, batch, layer)
    return made


def out_of_fp16(model: nn.Module, workload: Workload, batch: Inputs, layer: str, strength: float) -> nn.Module:
    """The layer gives 2^k times as much, so that what its readers read on the batch passes 65504 by `strength`."""
    pair = pair_of(model, workload, batch, layer)
    read = [(name, 1) for name in pair.products] or [(name, 0) for name in pair.readers]
    operands, _, seen = observed(model, workload, (batch,), {name for name, _ in read})
    rows = [operands.index(operand) for operand in read]
    largest = max(float(max(abs(seen.low[row]), abs(seen.high[row]))) for row in rows)
    made, _ = beyond_fp16(model, workload, pair, largest, strength)
    check_same(model, made, batch, layer)
    return made
