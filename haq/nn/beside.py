"""Runs a quantized network beside its FP32 original on the same inputs, and keeps how their answers differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.metrics import Outputs, agreement, kl_from_fp32
from haq.nn.task import logits_of


class Beside(nn.Module):
    """Answers as FP32 does, and remembers. It changes while it runs.

    agrees: 1.0 where both have the same class, a batch at a time; divergence: KL(FP32 || quantized) in nats, infinite
    where the quantized logits are not finite. Both are empty for outputs that are no (samples, classes) logits.
    """

    def __init__(self, quantized: nn.Module, fp32: nn.Module, expected: str) -> None:
        super().__init__()
        self.quantized, self.fp32, self._expected = quantized, fp32, expected
        self.agrees: list[NDArray[np.float64]] = []
        self.divergence: list[NDArray[np.float64]] = []
        self.samples = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """FP32's output; raises InputError on inputs that are not finite or do not fit, and where FP32 gives NaN."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise InputError(
                "the data are not finite", where=f"--data, after {self.samples} samples", got="NaN or infinity",
                expected="finite numbers",
            )  # fmt: skip
        try:
            quantized, fp32 = self.quantized(*args, **kwargs), self.fp32(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                "the model does not take the data", where="--data", got=", ".join(str(tuple(t.shape)) for t in tensors),
                expected=self._expected, way_out=str(error).splitlines()[0][:120],
            ) from error  # fmt: skip
        self._compare(fp32, quantized, len(tensors[0]))
        return fp32

    def _compare(self, fp32: object, quantized: object, samples: int) -> None:
        first = self.samples
        self.samples += samples
        try:
            reference, answer = logits_of(fp32).double().cpu(), logits_of(quantized).double().cpu()
        except InputError:
            return
        if not bool(torch.isfinite(reference).all()):
            raise InputError(
                "the FP32 network gives numbers that are not finite", where=f"--data, samples {first} and on",
                got="NaN or infinity", expected="a network that works in FP32",
            )  # fmt: skip
        if reference.dim() != 2 or len(reference) != samples:
            return
        both = Outputs((answer,), ()), Outputs((reference,), ())
        self.agrees.append(agreement(*both))
        self.divergence.append(np.nan_to_num(kl_from_fp32(*both), nan=np.inf, posinf=np.inf))
