"""An NVIDIA GPU under PyTorch, ready to be measured."""

from __future__ import annotations

from haq.errors import InputError
from haq.measure.device import Device


def cuda(threads: int | None) -> Device:
    raise InputError("no CUDA device", where="--device", got="cuda", expected="a GPU that torch.cuda sees")
