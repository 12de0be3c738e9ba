"""Learned quantizers: gradients of the LSQ paper by hand and against torch's own kernel, and what freezing keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded import quantize_weight
from torch import Tensor

from haq.nn.lsq import LearnedBias, LearnedOperand, LearnedWeight, round_to_format, round_to_steps
from haq.nn.quantizers import ActivationQuantizer, QuantizedWeight, cast, executed_weight
from haq.precision import FORMATS, Precision

INT4, INT8 = FORMATS["int4"], FORMATS["int8"]


def leaf(*numbers: float) -> Tensor:
    return torch.tensor(numbers, requires_grad=True)


def test_rounding_and_both_gradients_are_those_of_the_paper() -> None:
    # x / step = -5.2, -1.2, 0.6, 2.4, 10 between -4 and 3.
    x, step = leaf(-2.6, -0.6, 0.3, 1.2, 5.0), torch.tensor(0.5, requires_grad=True)
    y = round_to_steps(x, step, -4, 3, 1.0)
    assert y.tolist() == [-2.0, -0.5, 0.5, 1.0, 1.5]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]  # equation 5
    # Equation 3: -4, then round(v) - v three times, then 3.
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(-4 + (-1 + 1.2) + (1 - 0.6) + (2 - 2.4) + 3)


def test_the_steps_gradient_is_weighted_by_what_comes_from_above_and_by_the_gradient_scale() -> None:
    x, step = leaf(0.3, 5.0), torch.tensor(0.5, requires_grad=True)
    (round_to_steps(x, step, -4, 3, 0.1) * torch.tensor([2.0, -1.0])).sum().backward()
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(0.1 * (2 * (1 - 0.6) - 3))


def test_each_channel_has_the_gradient_of_its_own_step() -> None:
    x = torch.tensor([[0.3, 5.0], [0.3, -0.2]], requires_grad=True)
    step = torch.tensor([[0.5], [1.0]], requires_grad=True)
    round_to_steps(x, step, -4, 3, 1.0).sum().backward()
    assert step.grad is not None
    # Second channel: both round to 0, so round(v) - v is -0.3 and 0.2.
    assert step.grad.flatten().tolist() == pytest.approx([(1 - 0.6) + 3, -0.3 + 0.2])


@settings(deadline=None)  # the first call loads a kernel
@given(st.integers(0, 2**32 - 1), st.integers(0, 15))
def test_gradients_agree_with_torchs_learnable_fake_quantization(seed: int, zero_point: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = float(-zero_point), float(15 - zero_point)
    v = torch.empty(64).uniform_(low - 4, high + 4, generator=generator)
    # Within half a step beyond the last code the kernel still counts a number as inside, the paper does not.
    v = v[((v < low - 0.51) | (v > low)) & ((v > high + 0.51) | (v < high))]
    from_above = torch.randn(len(v), generator=generator)
    found = []
    for ours in (True, False):
        x, step = (v * 0.1).requires_grad_(), torch.tensor([0.1], requires_grad=True)
        if ours:
            y = round_to_steps(x, step, low, high, 0.3)
        else:
            y = torch._fake_quantize_learnable_per_tensor_affine(
                x, step, torch.tensor([float(zero_point)]), 0, 15, grad_factor=0.3
            )
        (y * from_above).sum().backward()
        assert x.grad is not None
        assert step.grad is not None
        found.append((y.detach(), x.grad, step.grad))
    for ours_, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-3, atol=1e-4)


def test_a_learned_operand_starts_as_the_quantizer_and_freezes_to_what_it_computes() -> None:
    start = ActivationQuantizer(INT8, float(np.float32(0.037)), 17)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 4
    learned = LearnedOperand(start, 1000)
    assert torch.equal(learned(x), start(x))
    assert learned.frozen() == start
    with torch.no_grad():
        learned.log_step.fill_(0.1)
    assert learned.frozen().scale == pytest.approx(0.037 * math.exp(0.1))
    assert torch.equal(learned(x), learned.frozen()(x))


def test_the_gradient_of_a_logarithmic_step_is_the_step_times_that_of_the_step() -> None:
    learned = LearnedOperand(ActivationQuantizer(INT4, 0.5, 4), 25)
    learned(torch.tensor([0.3, 100.0])).sum().backward()
    # Codes run from -4 to 11 around the zero point: N_F = 25 and Q_P = 11.
    by_hand = 0.5 * ((1 - 0.6) + 11) / math.sqrt(25 * 11)
    assert learned.log_step.grad is not None
    assert learned.log_step.grad.item() == pytest.approx(by_hand)


def quantized(weight: Tensor, axis: int = 0) -> QuantizedWeight:
    ranges = weight.movedim(axis, 0).reshape(weight.shape[axis], -1).abs().amax(dim=1) * 0.6
    return quantize_weight(weight, ranges, axis, INT4)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((5, 7), 0), ((4, 6, 3, 3), 1), ((3, 2, 4), 0)])
@pytest.mark.parametrize("text", ["int4/int8", "int4/bf16"])
def test_a_learned_weight_starts_at_the_stored_codes_and_freezes_to_what_it_computes(
    shape: tuple[int, ...], axis: int, text: str
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stored, precision = quantized(weight, axis), Precision.parse(text)
    learned = LearnedWeight(weight, stored, axis, precision)
    assert torch.equal(learned().contiguous(), executed_weight(stored, precision))
    with torch.no_grad():
        learned.value.add_(0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(2)))
        learned.log_step.add_(0.05)
    frozen = learned.frozen()
    assert isinstance(frozen, QuantizedWeight)
    assert not torch.equal(frozen.codes, stored.codes)
    assert torch.equal(learned().contiguous(), executed_weight(frozen, precision))


def test_training_begins_at_codes_that_something_else_has_chosen() -> None:
    weight = torch.tensor([[0.2, 0.26, -0.9, 2.0]])
    # In steps 2, 2.6, -9 and 20. Rounding would give 2 and 3; the second was rounded down and the rest is clipped.
    stored = QuantizedWeight(INT4, torch.tensor([[2, 2, -7, 7]], dtype=torch.int8), torch.tensor([0.1]), 0)
    learned = LearnedWeight(weight, stored, 0, Precision.parse("int4/int8"))
    assert learned().flatten().tolist() == pytest.approx([0.2, 0.2, -0.7, 0.7])
    # 2.6 moved to 2.49, nearest of what rounds to 2; what is clipped stays where it was.
    assert (learned.value * learned._unit).flatten().tolist() == pytest.approx([0.2, 0.249, -0.9, 2.0])


@pytest.mark.parametrize("text", ["fp32", "fp16", "bf16"])
def test_a_float_weight_that_does_not_move_keeps_every_bit(text: str) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(3)) * torch.tensor([1e-3, 1, 30, 0, 2])[:, None]
    learned = LearnedWeight(weight, weight, 0, Precision.parse(text))
    frozen = learned.frozen()
    assert isinstance(frozen, Tensor)
    assert torch.equal(frozen, weight)
    assert torch.equal(learned(), cast(weight, FORMATS[text]))


def test_a_bias_that_does_not_move_keeps_every_bit() -> None:
    bias = torch.tensor([0.1, -3.7, 1e-6])
    learned = LearnedBias(bias, torch.tensor([0.3, 5.0, 1e-4]), FORMATS["fp32"])
    assert torch.equal(learned(), bias)
    assert torch.equal(learned.frozen(), bias)


def test_a_cast_passes_gradients_that_its_format_could_not_hold() -> None:
    x = leaf(1.0001)
    y = round_to_format(x, FORMATS["fp16"])
    assert y.item() == 1.0
    (y * 1e-12).sum().backward()  # fp16 has nothing between 0 and 6e-8
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(1e-12)
