"""Output corrections: what a layer's outputs have in mean and deviation before and after, on real inputs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate import seeded

from haq.nn.ptq.bias_correction import lost_mean
from haq.nn.ptq.bn_reestimation import MOST_GAIN, restored
from haq.nn.ptq.statistics import InputStatistics
from haq.nn.ptq.stored import LayerWeight, stored_layer
from haq.precision import FORMATS
from haq.techniques import Stack

INT4 = FORMATS["int4"]


def statistics(x: torch.Tensor) -> InputStatistics:
    return InputStatistics((x.T @ x / len(x))[None], x.mean(dim=0)[None], len(x))


def test_the_lost_mean_by_hand() -> None:
    rows, rounded = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), torch.tensor([[[0.5, 2.5], [3.0, 1.0]]])
    # (0.5 * 4 - 0.5 * 2, 0 * 4 - 1 * 2)
    assert lost_mean(rows, rounded, torch.tensor([[4.0, 2.0]])).tolist() == [1.0, -2.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 12))
def test_bias_correction_restores_every_channels_mean(seed: int, k: int) -> None:
    x, weight = seeded(64, k, seed=seed) + 0.5, seeded(5, k, seed=seed + 1)
    made = stored_layer(LayerWeight("w", weight, 0), INT4, Stack.of(["bias_correction"]), statistics(x))
    assert made.shift is not None
    outputs = x @ made.weight.dequantize().T + made.shift
    assert torch.allclose(outputs.mean(dim=0), (x @ weight.T).mean(dim=0), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 12))
def test_bn_reestimation_restores_every_channels_mean_and_deviation(seed: int, k: int) -> None:
    x, weight = seeded(64, k, seed=seed) + 0.5, seeded(5, k, seed=seed + 1)
    made = stored_layer(LayerWeight("w", weight, 0), INT4, Stack.of(["mse", "bn_reestimation"]), statistics(x))
    assert made.shift is not None
    outputs, exact = x @ made.weight.dequantize().T + made.shift, x @ weight.T
    plain = x @ stored_layer(LayerWeight("w", weight, 0), INT4, Stack.of(["mse"]), None).weight.dequantize().T
    within = (exact.std(dim=0) / plain.std(dim=0)).clamp(1 / MOST_GAIN, MOST_GAIN)
    assert torch.allclose(outputs.mean(dim=0), exact.mean(dim=0), atol=1e-4)
    assert torch.allclose(outputs.std(dim=0), plain.std(dim=0) * within, rtol=1e-3)


def test_a_channel_that_rounding_wiped_out_or_that_never_varies_keeps_its_scale() -> None:
    moments = torch.eye(2)[None]
    gains, shift = restored(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.zeros(1, 2, 2), moments, torch.zeros(1, 2))
    assert gains.flatten().tolist() == [1.0, 1.0]
    assert bool(torch.isfinite(shift).all())
    constant = torch.full((1, 2, 2), 4.0)  # both inputs are always 2: no output varies
    gains, _ = restored(torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.9), constant, torch.full((1, 2), 2.0))
    assert gains.item() == 1.0


def test_no_gain_is_larger_than_its_bound() -> None:
    gains, _ = restored(torch.full((1, 1, 2), 8.0), torch.ones(1, 1, 2), torch.eye(2)[None], torch.zeros(1, 2))
    assert gains.item() == MOST_GAIN
