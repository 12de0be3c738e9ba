"""QuantEase: no single code can be improved, checked by trying them all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptq_layers import error, layer, min_max_grid

from haq.errors import InputError
from haq.nn.ptq.coordinate import quantease
from haq.nn.ptq.gptq import gptq
from haq.nn.ptq.grid import Grid, damped


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("k", [9, 150])
def test_no_other_value_of_any_single_code_lowers_the_error(k: int, block: int | None) -> None:
    rows, hessian = layer(g=2, rows=2, k=k, n=3 * k)
    grid = min_max_grid(rows, largest=3, block=block)
    codes = quantease(rows, hessian, grid, start=grid.codes(rows), sweeps=100)
    hessian = damped(hessian)
    least = error(rows, codes, grid, hessian)
    for column in range(k):
        for value in range(-3, 4):
            other = codes.clone()
            other[:, :, column] = value
            assert bool((error(rows, other, grid, hessian) >= least * (1 - 1e-9)).all())


def test_one_sweep_by_hand() -> None:
    # Two inputs of power 1 (damped: 1.01) and correlation 0.9, weights 0.4 and 0.4, scale 1, from codes 0, 0. Column 0:
    # gradient -0.404 - 0.36, round(0.764 / 1.01) = 1. Column 1: gradient 0.9 * 0.6 - 0.404 = 0.136, round(-0.13) = 0.
    hessian = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
    rows, grid = torch.tensor([[[0.4, 0.4]]]), Grid(torch.ones(1, 1, 1), 7, 2)
    start = torch.zeros(1, 1, 2, dtype=torch.int8)
    assert quantease(rows, hessian, grid, start=start, sweeps=1).tolist() == [[[1, 0]]]
    assert start.tolist() == [[[0, 0]]]


def test_without_a_start_it_begins_with_gptq() -> None:
    rows, hessian = layer(rows=16, k=40, n=100)
    grid = min_max_grid(rows)
    assert torch.equal(quantease(rows, hessian, grid, sweeps=0), gptq(rows, hessian, grid))
    expected = quantease(rows, hessian, grid, start=gptq(rows, hessian, grid))
    assert torch.equal(quantease(rows, hessian, grid), expected)


def test_a_batch_of_groups_gets_the_codes_that_each_group_gets_alone() -> None:
    rows, hessian = layer(g=20, rows=2, k=9)
    hessian[3, 4], hessian[3, :, 4] = 0, 0
    grid = min_max_grid(rows)
    start = grid.codes(rows)
    together = quantease(rows, hessian, grid, start=start)
    for i in range(20):
        one = slice(i, i + 1)
        alone = quantease(rows[one], hessian[one], Grid(grid.scales[one], 7, 9), start=start[one])
        assert torch.equal(together[one], alone)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(0, 15),
    st.sampled_from([1e-12, 1.0, 1e12]), st.integers(0, 2**31),
)  # fmt: skip
def test_the_error_never_grows_and_codes_of_dead_inputs_stay(
    g: int, rows: int, k: int, n: int, power: float, seed: int
) -> None:
    weight, hessian = layer(g, rows, k, max(n, 1), seed)
    dead = torch.randperm(k, generator=torch.Generator().manual_seed(seed))[: k - n] if n < k else torch.tensor([0])
    hessian[:, dead], hessian[:, :, dead] = 0, 0
    hessian = hessian * power
    grid = min_max_grid(weight, largest=1 + seed % 8)
    start = grid.codes(weight)
    codes = quantease(weight.float(), hessian, grid, start=start)
    assert int(codes.abs().max()) <= grid.largest
    assert torch.equal(codes[:, :, dead], start[:, :, dead])
    before, after = (error(weight, c, grid, damped(hessian)) for c in (start, codes))
    assert bool((after <= before * (1 + 1e-5) + 1e-12 * power).all())


def test_codes_of_another_shape_are_refused() -> None:
    rows, hessian = layer()
    grid = min_max_grid(rows)
    with pytest.raises(InputError, match="the codes do not fit the weight"):
        quantease(rows, hessian, grid, start=grid.codes(rows)[:, :2])
