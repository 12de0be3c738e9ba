"""The squared error of a layer's output when its weights are rounded: what matters of it, and no more.

AIMET's SeqMSE chooses ranges by the same figure, layer after layer; here every layer is judged on the inputs that it
has in FP32, so that its weights are quantized once whatever the others' precisions are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

SKETCH = 512
"""Random directions that stand for wider inputs. A scale is chosen among errors seen in the same directions."""
SKETCH_SEED = 0
LEAST_DAMPING = 1e-6


def output_error(moments: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from (groups, rows, k) rounding errors e to (groups, rows) e H eᵀ, H the (groups, k, k) moments.

    Up to 2 SKETCH inputs it is exact. Beyond, it is estimated from SKETCH random projections of L, H = L Lᵀ (Johnson
    and Lindenstrauss 1984): k / SKETCH times as fast, with a deviation of sqrt(2 / SKETCH) = 6 %.
    """
    k = moments.shape[1]
    if k <= 2 * SKETCH:
        return partial(_exact, moments)
    return partial(_estimated, _cholesky(moments) @ _directions(k, moments))


def _exact(moments: Tensor, errors: Tensor) -> Tensor:
    return ((errors @ moments) * errors).sum(dim=2)


def _estimated(projected: Tensor, errors: Tensor) -> Tensor:
    return (errors @ projected).square().sum(dim=2)


def _directions(k: int, like: Tensor) -> Tensor:
    """(k, SKETCH) normal numbers whose outer products average to the identity."""
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    return torch.randn((k, SKETCH), generator=generator).div_(SKETCH**0.5).to(like)


def _cholesky(moments: Tensor) -> Tensor:
    """L with L Lᵀ = H plus as little on the diagonal as it takes."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None]
    damping = LEAST_DAMPING
    while True:
        damped = moments.clone()
        damped.diagonal(dim1=1, dim2=2).add_(damping * mean + torch.finfo(moments.dtype).tiny)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return torch.as_tensor(lower)
        damping *= 10
