"""GPTQ against the paper's own algorithm, and on inputs that make its matrix singular."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptq_layers import error, gptq_by_the_paper, layer, min_max_grid

from haq.errors import InputError
from haq.nn.ptq.gptq import gptq, unit_upper
from haq.nn.ptq.grid import Grid


def damped(hessian: torch.Tensor, share: float) -> torch.Tensor:
    return hessian + share * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


@pytest.mark.parametrize("k", [6, 128, 300])
@pytest.mark.parametrize("block", [None, 4])
def test_in_the_columns_own_order_it_gives_the_codes_of_the_papers_algorithm(k: int, block: int | None) -> None:
    rows, hessian = layer(rows=8, k=k, n=2 * k)
    grid = min_max_grid(rows, block=block)
    expected = gptq_by_the_paper(rows[0], damped(hessian[0], 0.01), grid.expand(k)[0], 7)
    assert torch.equal(gptq(rows, hessian, grid, act_order=False)[0].double(), expected)


@pytest.mark.parametrize("block", [None, 4])
def test_activation_order_is_the_papers_algorithm_on_columns_sorted_by_their_input_power(block: int | None) -> None:
    rows, hessian = layer(rows=8, k=50, n=200)
    grid = min_max_grid(rows, block=block)
    order = sorted(range(50), key=lambda i: -float(hessian[0, i, i]))
    scales = grid.expand(50)[0][:, order]
    sorted_codes = gptq_by_the_paper(rows[0][:, order], damped(hessian[0][order][:, order], 0.1), scales, 7)
    expected = torch.empty_like(sorted_codes)
    expected[:, order] = sorted_codes
    assert torch.equal(gptq(rows, hessian, grid, damping=0.1)[0].double(), expected)


def test_the_factor_is_unit_upper_triangular_and_gives_the_damped_hessian_back() -> None:
    _, hessian = layer(g=2, k=5)
    upper = unit_upper(hessian, 0.01)
    assert torch.equal(upper.triu(), upper)
    assert torch.equal(upper.diagonal(dim1=1, dim2=2), torch.ones(2, 5, dtype=torch.float64))
    target = torch.stack([damped(h, 0.01) for h in hessian])
    inverse = torch.linalg.inv(upper)
    middle = inverse @ target @ inverse.mT  # D, a diagonal matrix
    torch.testing.assert_close(middle, torch.diag_embed(middle.diagonal(dim1=1, dim2=2)), atol=1e-9, rtol=0)


def test_uncorrelated_inputs_leave_nearest_rounding() -> None:
    rows, _ = layer()
    grid = min_max_grid(rows)
    assert torch.equal(gptq(rows, torch.eye(6)[None], grid), grid.codes(rows))


def test_it_beats_nearest_rounding_where_inputs_are_correlated() -> None:
    rows, hessian = layer(rows=64, k=64, n=500)
    grid = min_max_grid(rows)
    nearest = error(rows, grid.codes(rows), grid, hessian).sum()
    assert error(rows, gptq(rows, hessian, grid), grid, hessian).sum() < 0.7 * nearest


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [None, 3])
def test_a_batch_of_groups_gets_the_codes_that_each_group_gets_alone(act_order: bool, block: int | None) -> None:
    rows, hessian = layer(g=20, rows=2, k=9)
    grid = min_max_grid(rows, block=block)
    together = gptq(rows, hessian, grid, act_order=act_order)
    for i in range(20):
        alone = Grid(grid.scales[i : i + 1], 7, grid.block)
        assert torch.equal(together[i], gptq(rows[i : i + 1], hessian[i : i + 1], alone, act_order=act_order)[0])


def test_weights_of_a_dead_input_are_rounded_to_nearest_and_disturb_nothing_else() -> None:
    rows, hessian = layer()
    hessian[:, 2], hessian[:, :, 2] = 0, 0
    grid = min_max_grid(rows)
    codes, alive = gptq(rows, hessian, grid), [0, 1, 3, 4, 5]
    assert torch.equal(codes[:, :, 2], grid.codes(rows)[:, :, 2])
    without = gptq(rows[:, :, alive], hessian[:, alive][:, :, alive], Grid(grid.scales, 7, 5))
    assert torch.equal(codes[:, :, alive], without)


def test_a_layer_without_any_input_is_rounded_to_nearest() -> None:
    rows, _ = layer()
    grid = min_max_grid(rows)
    assert torch.equal(gptq(rows, torch.zeros(1, 6, 6), grid), grid.codes(rows))


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_constant_inputs_make_errors_cancel(damping: float) -> None:
    # The output is the sum of the weights: only the last column's rounding remains, at most half a step.
    rows, _ = layer(rows=16)
    grid = Grid(rows.abs().amax(dim=2, keepdim=True) / 6, 7, 6)  # one step of head-room
    values = grid.values(gptq(rows, torch.ones(1, 6, 6), grid, damping=damping))
    off = (rows.sum(dim=2) - values.sum(dim=2)).abs() / grid.scales[:, :, 0]
    assert float(off.max()) <= 0.5 + (0.06 if damping else 1e-6)


def test_groups_with_a_definite_hessian_keep_their_damping_when_another_group_needs_more() -> None:
    rows, hessian = layer(g=2)
    hessian[1] = torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 1])) - 0.5  # indefinite: 0.5 * 6 > 1
    grid = min_max_grid(rows)
    alone = gptq(rows[:1], hessian[:1], Grid(grid.scales[:1], 7, 6), damping=0.0)
    assert torch.equal(gptq(rows, hessian, grid, damping=0.0)[:1], alone)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(1, 15),
    st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([1e-12, 1.0, 1e12]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_any_inputs_give_codes_in_range(
    g: int, rows: int, k: int, n: int, damping: float, power: float, act_order: bool, seed: int
) -> None:
    weight, hessian = layer(g, rows, k, n, seed)  # n = 1 is one sample: rank 1
    grid = min_max_grid(weight, largest=1 + seed % 8)
    codes = gptq(weight.float(), hessian.float() * power, grid, damping=damping, act_order=act_order)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= grid.largest
    assert bool(torch.isfinite(error(weight, codes, grid, hessian)).all())


def test_numbers_that_are_not_finite_shapes_that_disagree_and_negative_damping_are_refused() -> None:
    rows, hessian = layer()
    grid = min_max_grid(rows)
    with pytest.raises(InputError, match="the Hessian is not finite"):
        gptq(rows, hessian * float("nan"), grid)
    with pytest.raises(InputError, match="the weight is not finite"):
        gptq(rows * float("inf"), hessian, grid)
    with pytest.raises(InputError, match="the Hessian does not fit"):
        gptq(rows, hessian[:, :5, :5], grid)
    with pytest.raises(InputError, match="cannot use this damping; got -1"):
        gptq(rows, hessian, grid, damping=-1)
