"""AdaRound against all 2^k roundings of small layers, and against nearest rounding on any."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptq_layers import best_of_up_and_down, error, layer, min_max_grid

from haq.errors import InputError
from haq.nn.ptq.adaround import adaround
from haq.nn.ptq.coordinate import quantease
from haq.nn.ptq.grid import Grid, damped


def test_on_small_layers_it_comes_within_1_percent_of_the_best_of_all_roundings() -> None:
    rows, hessian = layer(g=16, rows=16, k=6)
    grid = min_max_grid(rows)
    best = best_of_up_and_down(rows, grid, hessian)
    nearest = error(rows, grid.codes(rows), grid, hessian)
    found = error(rows, adaround(rows, hessian, grid), grid, hessian)
    assert best.sum() < 0.6 * nearest.sum(), "the case is no test of rounding"
    assert found.sum() <= 1.01 * best.sum()


def test_from_any_codes_learning_improves_on_what_the_polish_alone_makes_of_them() -> None:
    rows, hessian = layer(g=16, rows=16, k=6)
    grid = min_max_grid(rows)
    start = grid.codes(rows)
    polished = error(rows, quantease(rows, hessian, grid, start=start), grid, damped(hessian))
    learned = error(rows, adaround(rows, hessian, grid, start=start), grid, damped(hessian))
    assert bool((learned <= polished).all())
    assert learned.sum() < 0.95 * polished.sum()


def test_it_beats_coordinate_descent_on_a_layer_too_large_to_search() -> None:
    rows, hessian = layer(rows=32, k=60, n=300)
    grid = min_max_grid(rows)
    start = quantease(rows, hessian, grid)
    learned = adaround(rows, hessian, grid)
    assert error(rows, learned, grid, hessian).sum() < 0.97 * error(rows, start, grid, hessian).sum()
    assert torch.equal(learned, adaround(rows, hessian, grid, start=start))


def test_group_wise_scales_and_a_single_bit_of_range() -> None:
    rows, hessian = layer(g=3, rows=8, k=10)
    for grid in (min_max_grid(rows, block=4), min_max_grid(rows, largest=1)):
        codes = adaround(rows, hessian, grid, steps=100)
        assert int(codes.abs().max()) <= grid.largest
        nearest = error(rows, grid.codes(rows), grid, hessian).sum()
        assert error(rows, codes, grid, hessian).sum() < 0.9 * nearest


def test_a_batch_of_groups_is_as_good_as_each_group_alone() -> None:
    # fp32 sums in another order may round a weight differently, so errors are compared and not codes.
    rows, hessian = layer(g=12, rows=2, k=9)
    grid = min_max_grid(rows)
    together = error(rows, adaround(rows, hessian, grid), grid, hessian).sum()
    alone = 0.0
    for i in range(12):
        one, part = slice(i, i + 1), Grid(grid.scales[i : i + 1], 7, 9)
        codes = adaround(rows[one], hessian[one], part)
        alone += float(error(rows[one], codes, part, hessian[one]).sum())
    assert float(together) == pytest.approx(alone, rel=0.01)


def test_a_weight_that_lies_on_the_grid_stays_and_so_does_one_without_inputs() -> None:
    rows, hessian = layer()
    grid = min_max_grid(rows)
    on_grid = grid.values(grid.codes(rows))
    assert torch.equal(adaround(on_grid, hessian, grid, steps=50), grid.codes(rows))
    assert torch.equal(adaround(rows, torch.zeros(1, 6, 6), grid, steps=50), grid.codes(rows))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 10), st.integers(1, 12),
    st.sampled_from([1e-12, 1.0, 1e12]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_no_row_is_ever_worse_than_nearest_rounding(
    g: int, rows: int, k: int, n: int, power: float, constant: bool, seed: int
) -> None:
    weight, hessian = layer(g, rows, k, n, seed)  # n = 1 is one sample: rank 1
    hessian = torch.ones_like(hessian) if constant else hessian * power
    if seed % 3 == 0:
        hessian[:, k // 2], hessian[:, :, k // 2] = 0, 0
    grid = min_max_grid(weight, largest=1 + seed % 8)
    codes = adaround(weight, hessian, grid, steps=20)
    assert int(codes.abs().max()) <= grid.largest
    assert bool((error(weight, codes, grid, hessian) <= error(weight, grid.codes(weight), grid, hessian)).all())


def test_no_steps_are_refused() -> None:
    rows, hessian = layer()
    with pytest.raises(InputError, match="got 0; expected steps >= 1"):
        adaround(rows, hessian, min_max_grid(rows), steps=0)
