"""Techniques for activations: per-token scales and the entropy observer."""

import numpy as np
import pytest
import torch
from test_simulate import NEAREST, seeded
from torch import nn

from haq.nn.calibrate import calibrate
from haq.nn.ptq.entropy import least_divergence
from haq.nn.ptq.per_token import round_per_token
from haq.nn.simulate import Simulator
from haq.nn.trace import trace
from haq.precision import FORMATS, Assignment, Precision

INT8T = FORMATS["int8t"]


def test_every_row_has_the_scale_of_its_own_largest_value() -> None:
    x = torch.tensor([[127.0, 1.4, -0.6], [0.127, 0.0014, -0.0006], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[127.0, 1.0, -1.0], [0.127, 0.001, -0.001], [0.0, 0.0, 0.0]])
    assert torch.allclose(round_per_token(x, INT8T), expected)


def test_nan_stays_nan_in_its_row_only() -> None:
    found = round_per_token(torch.tensor([[1.0, torch.nan], [1.0, 0.5]]), INT8T)
    assert bool(torch.isnan(found[0]).all())
    assert found[1].tolist() == pytest.approx([1.0, 64 / 127])


def test_a_linear_layer_with_per_token_activations_multiplies_rows_rounded_so() -> None:
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), seeded(2, 3, 8) * torch.tensor([1.0, 100.0, 0.01])[:, None]
    workload = trace(model, (x,), name="net")
    simulator = Simulator(model, workload, calibrate(model, workload, [(x,)], stack=NEAREST))
    built = simulator.build(Assignment.uniform(workload.layer_names, Precision.parse("int8/int8t")))
    weight = simulator.stored(workload.layers[0], FORMATS["int8"]).weight.dequantize()
    scales = x.abs().amax(dim=-1, keepdim=True) / 127
    with torch.inference_mode():
        assert torch.allclose(
            built(x), torch.round(x / scales) * scales @ weight.T + model[0].bias, rtol=1e-4, atol=1e-5
        )


def test_entropy_keeps_the_whole_range_of_even_numbers_and_clips_far_outliers() -> None:
    even = np.full(2048, 100.0)
    assert least_divergence(0.0, 1.0, even, 255) == 1.0
    tail = 1e6 * np.exp(-np.arange(2048) / 20)  # bends within a code of 8 bins, so that finer codes tell more
    tail[-1] = 1.0
    assert least_divergence(0.0, 1.0, tail, 255) < 0.5
    assert least_divergence(-1.0, 1.0, np.zeros(2048), 255) == 1.0
    assert least_divergence(2.0, 2.0, tail, 255) == 1.0


def test_entropy_ranges_of_bell_shaped_numbers_lie_between_their_bulk_and_their_extremes() -> None:
    x = np.random.default_rng(0).normal(size=200_000)
    counts = np.histogram(x, 2048, (-6.0, 6.0))[0].astype(float)
    share = least_divergence(-6.0, 6.0, counts, 255)
    assert 2.0 / 6 < share < 5.0 / 6
