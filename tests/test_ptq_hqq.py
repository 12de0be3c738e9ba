"""HQQ: it finds the scale that most weights lie on, whatever a few outliers do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptq_layers import layer, min_max_grid

from haq.errors import InputError
from haq.nn.ptq.grid import Grid
from haq.nn.ptq.hqq import hqq


def lp(rows: torch.Tensor, grid: Grid, p: float) -> torch.Tensor:
    return (rows - grid.values(grid.codes(rows))).abs().pow(p).sum(dim=2)


def test_weights_on_a_grid_with_a_few_outliers_give_that_grid_back() -> None:
    # 3 of 500 weights are off the grid of scale 0.1; least squares over all of them would not give 0.1.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-7, 8, (2, 3, 500), generator=generator).double() * 0.1
    rows[:, :, :3] = torch.tensor([1.0, -0.97, 0.93])
    found = hqq(rows, Grid(torch.full((2, 3, 1), 0.102).double(), 7, 500), steps=50)
    torch.testing.assert_close(found.scales, torch.full((2, 3, 1), 0.1).double(), rtol=1e-3, atol=0)
    codes = found.codes(rows).double()
    squares = (codes * rows).sum(dim=2) / codes.square().sum(dim=2)
    assert bool(((squares - 0.1).abs() > (found.scales[:, :, 0] - 0.1).abs()).all())


def test_one_step_by_hand() -> None:
    # Weights 1.0 and 2.2 in steps of 1: errors 0 and 0.2. p = 1 and beta = 10: shrink takes 0.1 off, e = (0, 0.1).
    # s = (1 * 1.0 + 2 * 2.1) / (1 + 4) = 1.04; |error| falls from 0.2 to 0.04 + 0.12 = 0.16, so it is kept.
    found = hqq(torch.tensor([[[1.0, 2.2]]]), Grid(torch.ones(1, 1, 1), 7, 2), p=1.0, steps=1)
    assert found.scales.item() == pytest.approx(1.04)
    assert (found.largest, found.block) == (7, 2)


def test_a_scale_that_the_step_makes_worse_is_kept() -> None:
    # Errors 0 and 0.4: s = (1 * 1.0 + 2 * 2.1) / 5 = 1.04 again would do; at p = 0.3 the exact weight counts for more.
    rows = torch.tensor([[[1.0, 2.4]]])
    assert hqq(rows, Grid(torch.ones(1, 1, 1), 7, 2), p=0.3, steps=1).scales.item() == 1.0


def test_a_block_of_zeros_keeps_its_scale() -> None:
    rows = torch.zeros(1, 1, 4)
    rows[0, 0, 2:] = torch.tensor([0.3, 0.9])
    assert hqq(rows, Grid(torch.ones(1, 1, 2), 7, 2)).scales[0, 0, 0] == 1.0


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 8), st.sampled_from([0.5, 0.7, 1.0]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_no_block_gets_a_larger_lp_error(g: int, rows: int, k: int, block: int, p: float, seed: int) -> None:
    weight, _ = layer(g, rows, k, 1, seed)
    if seed % 4 == 0:
        weight[:, :, : k // 2] = 0
    grid = min_max_grid(weight, largest=1 + seed % 8, block=block)
    found = hqq(weight, grid, p=p)
    assert found.scales.shape == grid.scales.shape
    for first in range(0, k, block):
        part = weight[:, :, first : first + block]
        before = Grid(grid.scales[:, :, first // block, None], grid.largest, block)
        after = Grid(found.scales[:, :, first // block, None], grid.largest, block)
        # fp64 rounds a weight by 1e-16 of it, which to the power p is no longer small.
        rounding = block * 1e-15**p
        assert bool((lp(part, after, p) <= lp(part, before, p) * (1 + 1e-9) + rounding).all())
        alone = hqq(part, before, p=p)
        torch.testing.assert_close(alone.scales, after.scales, rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2.0**-40, 0.5, 2.0**40]), st.integers(0, 2**31))
def test_weights_of_another_size_give_scales_of_that_size(factor: float, seed: int) -> None:
    weight, _ = layer(2, 3, 30, 1, seed)
    grid = min_max_grid(weight)
    larger = Grid(grid.scales * factor, 7, 30)
    assert torch.equal(hqq(weight * factor, larger).scales, hqq(weight, grid).scales * factor)


@pytest.mark.parametrize(("p", "steps"), [(0.0, 20), (1.5, 20), (0.7, 0), (float("nan"), 20)])
def test_a_p_or_steps_that_mean_nothing_are_refused(p: float, steps: int) -> None:
    rows, _ = layer()
    with pytest.raises(InputError, match="HQQ cannot run so"):
        hqq(rows, min_max_grid(rows), p=p, steps=steps)
