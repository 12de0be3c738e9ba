"""One layer under a whole stack: scales, codes, groups, and the inputs that calibration can spoil."""

import pytest
import torch
from rounded import quantize_weight
from test_simulate import seeded

from haq.errors import InputError
from haq.nn.ptq.grid import reconstruction_error
from haq.nn.ptq.statistics import InputStatistics
from haq.nn.ptq.stored import ROUNDINGS, LayerWeight, stored_layer
from haq.precision import FORMATS
from haq.techniques import TECHNIQUES, Stack

STACKS = [
    Stack.of([*ranges, *rounding, *output])
    for ranges in ([], ["mse"], ["output_mse"], ["hqq"])
    for rounding in ([], ["gptq"], ["quantease"], ["adaround"])
    for output in ([], ["bias_correction"], ["bn_reestimation"])
]


def inputs_of(x: torch.Tensor) -> InputStatistics:
    """x: (groups, n, k)."""
    return InputStatistics(x.transpose(1, 2) @ x / x.shape[1], x.mean(dim=1), x.shape[1])


def test_without_techniques_a_weight_is_rounded_to_nearest_within_its_largest_magnitude() -> None:
    weight = seeded(6, 4, 3, 3)
    made = stored_layer(LayerWeight("w", weight, 0, groups=2), FORMATS["int4"], Stack.of([]), None)
    expected = quantize_weight(weight, weight.abs().amax(dim=(1, 2, 3)), 0, FORMATS["int4"])
    assert torch.equal(made.weight.codes, expected.codes)
    assert torch.allclose(made.weight.scales, expected.scales)
    assert made.shift is None


def test_a_transposed_weight_has_a_scale_per_output_channel() -> None:
    weight = seeded(4, 6, 3, 3)
    made = stored_layer(LayerWeight("w", weight, 1), FORMATS["int8"], Stack.of([]), None)
    expected = quantize_weight(weight, weight.abs().amax(dim=(0, 2, 3)), 1, FORMATS["int8"])
    assert torch.equal(made.weight.codes, expected.codes)
    assert torch.allclose(made.weight.dequantize(), expected.dequantize())


def test_group_wise_scales_follow_each_block_of_inputs() -> None:
    weight = torch.cat([seeded(3, 32), 100 * seeded(3, 32), seeded(3, 6)], dim=1)
    made = stored_layer(LayerWeight("w", weight, 0), FORMATS["int4g32"], Stack.of([]), None).weight
    assert made.scales.shape == (3, 3)
    blocks = torch.stack([weight[:, a:b].abs().amax(dim=1) for a, b in ((0, 32), (32, 64), (64, 70))], dim=1)
    assert torch.allclose(made.scales, blocks / 7)
    whole = stored_layer(LayerWeight("w", weight, 0), FORMATS["int4"], Stack.of([]), None).weight
    small = slice(0, 32)
    error, coarse = ((x.dequantize() - weight)[:, small].square().sum() for x in (made, whole))
    assert float(error) < 0.02 * float(coarse)


@pytest.mark.parametrize("rounding", sorted(ROUNDINGS))
def test_rounding_techniques_lower_the_outputs_error_and_leave_eight_bits_alone(rounding: str) -> None:
    x = seeded(1, 200, 16) @ seeded(16, 16, seed=1)
    weight, inputs = seeded(8, 16, seed=2), inputs_of(x)

    def error(fmt: str, *names: str) -> float:
        stored = stored_layer(LayerWeight("w", weight, 0), FORMATS[fmt], Stack.of(names), inputs).weight
        return float(reconstruction_error(weight[None], stored.dequantize()[None], inputs.moments).sum())

    assert error("int4", "mse", rounding) < 0.7 * error("int4", "mse")
    assert error("int8", "mse", rounding) == error("int8", "mse")


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_every_stack_copes_with_dead_constant_and_single_inputs(stack: Stack) -> None:
    weight = seeded(4, 6)
    weight[1] = 0.0
    half_dead = seeded(1, 9, 6) * torch.tensor([1, 0, 1, 0, 1, 0])
    for x in (torch.zeros(1, 5, 6), torch.ones(1, 5, 6), seeded(1, 1, 6), half_dead):
        made = stored_layer(LayerWeight("w", weight, 0), FORMATS["int4"], stack, inputs_of(x))
        assert bool(torch.isfinite(made.weight.dequantize()).all())
        assert bool((made.weight.dequantize()[1] == 0).all())
        assert made.shift is None or bool(torch.isfinite(made.shift).all())


def test_a_weight_that_is_not_finite_is_an_error_that_names_it() -> None:
    weight = seeded(2, 2)
    weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"layer1\.weight.*finite"):
        stored_layer(LayerWeight("layer1.weight", weight, 0), FORMATS["int4"], Stack(), None)


def test_every_technique_is_used_somewhere() -> None:
    used = {name for stack in STACKS for name in stack.names}
    elsewhere = {"bn_fold", "cle", "smoothquant", "group_32", "group_64", "group_128", "per_token", "minmax"}
    assert used | elsewhere == set(TECHNIQUES)
