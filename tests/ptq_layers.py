"""Small layers with correlated inputs for the tests of weight rounding, and the textbook forms to compare with."""

from itertools import product

import torch
from torch import Tensor

from haq.nn.ptq.grid import Grid, reconstruction_error


def layer(g: int = 1, rows: int = 4, k: int = 6, n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (g, rows, k) and the Hessian (g, k, k) of n inputs that are correlated, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(g, k, k, generator=generator, dtype=torch.float64)
    inputs = torch.randn(g, n, k, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(g, rows, k, generator=generator, dtype=torch.float64), inputs.mT @ inputs / n


def min_max_grid(rows: Tensor, largest: int = 7, block: int | None = None) -> Grid:
    parts = rows.split(block or rows.shape[2], dim=2)
    scales = torch.stack([part.abs().amax(dim=2) for part in parts], dim=2) / largest
    return Grid(torch.where(scales > 0, scales, 1.0), largest, block or rows.shape[2])


def error(rows: Tensor, codes: Tensor, grid: Grid, hessian: Tensor) -> Tensor:
    return reconstruction_error(rows, grid.values(codes), hessian)


def best_of_up_and_down(rows: Tensor, grid: Grid, hessian: Tensor) -> Tensor:
    """(g, rows) the least error of all 2^k roundings up or down."""
    k = rows.shape[2]
    down = torch.floor(rows / grid.expand(k))
    tried = [
        error(rows, (down + torch.tensor(choice)).clamp(-grid.largest, grid.largest), grid, hessian)
        for choice in product((0.0, 1.0), repeat=k)
    ]
    return torch.stack(tried).amin(dim=0)


def gptq_by_the_paper(weight: Tensor, hessian: Tensor, scales: Tensor, largest: int) -> Tensor:
    """Algorithm 1 of Frantar et al. 2022 without its blocks: through the Cholesky factor of the inverse.

    weight, scales: (rows, k). hessian: (k, k), damped already.
    """
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    weight, codes = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = torch.round(weight[:, j] / scales[:, j]).clamp(-largest, largest)
        error = (weight[:, j] - codes[:, j] * scales[:, j]) / factor[j, j]
        weight[:, j:] -= error[:, None] * factor[j, j:]
    return codes
