"""The weight grid and the error of a rounding: arithmetic that a reader can redo, and the definition over samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded import quantize_weight

from haq.errors import InputError
from haq.nn.ptq.grid import Grid, damped, reconstruction_error
from haq.precision import FORMATS


def per_channel(*scales: float, largest: int = 7, k: int = 3) -> Grid:
    return Grid(torch.tensor(scales).reshape(1, -1, 1), largest, k)


def test_codes_are_the_nearest_multiples_half_to_even_and_saturate() -> None:
    grid = per_channel(0.5)
    codes = grid.codes(torch.tensor([[[0.6, 1.25, -9.0]]]))  # 1.2, 2.5, -18 steps
    assert codes.dtype == torch.int8
    assert codes.tolist() == [[[1, 2, -7]]]
    assert grid.values(codes).tolist() == [[[0.5, 1.0, -3.5]]]


def test_consecutive_columns_share_the_scale_of_their_block_and_the_last_block_may_be_short() -> None:
    grid = Grid(torch.tensor([[[1.0, 10.0]], [[2.0, 20.0]]]), 7, block=2)
    assert grid.expand(3).tolist() == [[[1.0, 1.0, 10.0]], [[2.0, 2.0, 20.0]]]
    assert grid.codes(torch.full((2, 1, 3), 20.0)).tolist() == [[[7, 7, 2]], [[7, 7, 1]]]


def test_codes_that_need_more_than_8_bits_are_int16() -> None:
    assert per_channel(0.001, largest=32767).codes(torch.tensor([[[30.0, 0, 0]]])).tolist() == [[[30000, 0, 0]]]


def test_it_rounds_as_the_weight_quantizer_does() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    ranges = weight.abs().amax(dim=1) * 0.8
    expected = quantize_weight(weight, ranges, 0, FORMATS["int4"])
    grid = Grid((ranges / 7)[None, :, None], 7, 12)
    assert torch.equal(grid.codes(weight[None])[0], expected.codes)
    assert torch.equal(grid.values(grid.codes(weight[None]))[0], expected.dequantize())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match="positive finite scales"):
        per_channel(1.0, scale)


def test_scales_that_do_not_cover_the_columns_are_refused() -> None:
    with pytest.raises(InputError, match="got '1 blocks of 2 columns'; expected 2 for 3 columns"):
        Grid(torch.ones(1, 1, 1), 7, block=2).codes(torch.zeros(1, 1, 3))


@pytest.mark.parametrize(("largest", "block", "shape"), [(0, 3, (1, 1, 1)), (7, 0, (1, 1, 1)), (7, 3, (1, 1))])
def test_what_is_no_grid_is_refused(largest: int, block: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="not a weight grid"):
        Grid(torch.ones(shape), largest, block)


def test_the_error_of_one_row_by_hand() -> None:
    # d = (1, -2): d H dᵀ = 1*3 + 2*1*(-2)*1 + 4*5 = 19
    hessian = torch.tensor([[[3.0, 1.0], [1.0, 5.0]]])
    rows, quantized = torch.tensor([[[4.0, 1.0]]]), torch.tensor([[[5.0, -1.0]]])
    assert reconstruction_error(rows, quantized, hessian).tolist() == [[19.0]]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 8), st.integers(1, 20), st.integers(0, 2**31))
def test_the_error_is_the_mean_squared_error_of_the_outputs(g: int, rows: int, k: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(g, n, k, generator=generator, dtype=torch.float64)
    weight, quantized = torch.randn(2, g, rows, k, generator=generator, dtype=torch.float64)
    expected = ((inputs @ weight.mT - inputs @ quantized.mT) ** 2).mean(dim=1)
    actual = reconstruction_error(weight, quantized, inputs.mT @ inputs / n)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_damping_adds_a_hundredth_of_the_mean_power_of_the_live_inputs() -> None:
    # Powers 1, 3 and a dead input: the mean of the live ones is 2.
    hessian = torch.tensor([[[1.0, 0.5, 0], [0.5, 3.0, 0], [0, 0, 0]]])
    expected = torch.tensor([[[1.02, 0.5, 0], [0.5, 3.02, 0], [0, 0, 0.02]]], dtype=torch.float64)
    torch.testing.assert_close(damped(hessian), expected, rtol=1e-12, atol=0)
    assert hessian[0, 0, 0] == 1.0
