"""Weight ranges: min-max, least weight error and least output error, against brute force."""

import pytest
import torch
from rounded import quantize_weight
from test_simulate import seeded

from haq.nn.ptq.grid import reconstruction_error
from haq.nn.ptq.output_mse import output_error
from haq.nn.ptq.ranges import RANGES, minmax_grid, mse, output_mse
from haq.precision import FORMATS


def moments(groups: int, k: int) -> torch.Tensor:
    x = seeded(groups, 4 * k, k) * torch.linspace(0.1, 3, k)
    return x.transpose(1, 2) @ x / (4 * k)


def test_minmax_reaches_to_each_rows_largest_magnitude() -> None:
    grid = minmax_grid(torch.tensor([[[1.0, -3.5], [0.7, 0.35], [0.0, 0.0]]]), 7, 2)
    assert grid.scales.flatten().tolist() == pytest.approx([0.5, 0.1, 1.0])


def test_groups_have_a_scale_each_and_the_last_may_be_short() -> None:
    grid = minmax_grid(torch.tensor([[[7.0, 1.0, -14.0, 0.0, 0.7]]]), 7, 2)
    assert grid.scales.flatten().tolist() == pytest.approx([1.0, 2.0, 0.1])


def test_mse_ranges_are_never_worse_than_minmax_and_near_brute_force_in_every_channel() -> None:
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[3] = 0.0
    weight[5, 0, 0, 0] = 40.0
    rows = weight.reshape(1, 16, 72)

    def errors(ranges: torch.Tensor) -> torch.Tensor:
        stored = quantize_weight(weight, ranges, 0, FORMATS["int4"])
        return (stored.dequantize() - weight).square().sum(dim=(1, 2, 3))

    grid = minmax_grid(rows, 7, 72)
    ours, widest = errors(mse(rows, None, grid).scales.flatten() * 7), rows.abs().amax(dim=2)[0]
    brute = torch.stack([errors(widest * share) for share in torch.linspace(0.25, 1, 300)]).amin(0)
    assert bool((ours <= errors(widest)).all())
    assert bool((ours <= 1.03 * brute + 1e-12).all())
    ordinary = torch.arange(16) != 5
    assert float(ours[ordinary].sum()) < 0.85 * float(errors(widest)[ordinary].sum())


def test_output_mse_is_near_brute_force_on_the_layers_output() -> None:
    rows, hessian = seeded(3, 4, 9), moments(3, 9)
    grid = minmax_grid(rows, 7, 9)

    def error(scales: torch.Tensor) -> torch.Tensor:
        rounded = torch.round(rows / scales).clamp(-7, 7) * scales
        return reconstruction_error(rows, rounded, hessian)

    ours = error(output_mse(rows, hessian, grid).scales)
    brute = torch.stack([error(grid.scales * share) for share in torch.linspace(0.25, 1, 300)]).amin(0)
    assert bool((ours <= 1.1 * brute + 1e-9).all())
    assert float(ours.sum()) < float(error(mse(rows, None, grid).scales).sum())


def test_output_mse_of_groups_judges_each_block_on_its_own_inputs() -> None:
    rows, hessian = seeded(1, 4, 10), moments(1, 10)
    grouped = output_mse(rows, hessian, minmax_grid(rows, 7, 4))
    for start, block in ((0, 0), (4, 1)):
        part, inputs = rows[:, :, start : start + 4], hessian[:, start : start + 4, start : start + 4]
        alone = output_mse(part.contiguous(), inputs.contiguous(), minmax_grid(part, 7, 4))
        assert torch.allclose(grouped.scales[:, :, block], alone.scales[:, :, 0])


def test_wide_layers_are_judged_in_few_directions_with_little_deviation() -> None:
    hessian, errors = moments(1, 1500), seeded(1, 20, 1500)
    exact = reconstruction_error(torch.zeros_like(errors), errors, hessian)
    # 512 directions: a deviation of sqrt(2 / 512) = 6 %, so that 25 % is four of them.
    assert torch.allclose(output_error(hessian)(errors).double(), exact, rtol=0.25)


def test_a_singular_hessian_of_a_wide_layer_still_tells_errors_apart() -> None:
    x = seeded(3, 1100)
    error = output_error((x.T @ x / 3)[None])
    assert bool(torch.isfinite(error(seeded(1, 2, 1100))).all())


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("known", [True, False])
def test_every_kind_of_range_copes_with_dead_channels_and_dead_inputs(name: str, known: bool) -> None:
    rows, hessian = seeded(2, 3, 6), moments(2, 6)
    rows[0, 1] = 0.0
    hessian[:, 2], hessian[:, :, 2] = 0.0, 0.0
    grid = RANGES[name](rows, hessian if known else None, minmax_grid(rows, 7, 6))
    assert bool((torch.isfinite(grid.scales) & (grid.scales > 0)).all())
    assert bool((grid.codes(rows)[0, 1] == 0).all())
