"""The functions that a written loader carries with it: they need torch and nothing of haq."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def dequantized(codes: Tensor, scales: Tensor, group: int) -> Tensor:
    """The weight code x scale. scales: broadcasts against the codes; with a group (rows, blocks), one for every `group`
    consecutive codes of a row."""
    if group:
        scales = scales.repeat_interleave(group, dim=1)[:, : codes.shape[1]]
    return codes.to(scales.dtype) * scales


def load_numbers(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Give the model all its numbers, quantized weights as code x scale.

    model: FP32, batch norm folded; torch raises RuntimeError naming the keys where it is another network. stored:
    `codes/KEY`, `scales/KEY` and, where codes in a row share scales, `group/KEY` of a quantized weight, else
    `plain/KEY`.
    """
    state = {}
    for name, value in stored.items():
        kind, _, key = name.partition("/")
        if kind == "codes":
            state[key] = dequantized(value, stored[f"scales/{key}"], int(stored.get(f"group/{key}", 0)))
        elif kind == "plain":
            state[key] = value
    model.load_state_dict(state)


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Make a layer hold its parameters and compute in a narrow float format between FP32 neighbours, in place."""

    def narrow(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(narrow(value) for value in args), {name: narrow(value) for name, value in kwargs.items()}

    module.to(dtype)
    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(lambda _module, _args, output: output.float())
