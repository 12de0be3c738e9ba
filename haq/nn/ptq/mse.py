"""The squared error of rounded weights, every weight alike (Nagel et al. 2021, "A White Paper", section 3.1)."""

from __future__ import annotations

from torch import Tensor


def squared_error(errors: Tensor) -> Tensor:
    """(groups, rows) summed squares of (groups, rows, k) rounding errors."""
    return errors.square().sum(dim=2)
