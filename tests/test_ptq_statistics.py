"""Input statistics: the second moments and means of what layers read, against torch's own unfold."""

import pytest
import torch
import torch.nn.functional as F
from test_simulate import seeded
from torch import nn

from haq.nn.ptq import statistics
from haq.nn.ptq.statistics import input_statistics, shape_of
from haq.nn.trace import trace


def of(model: nn.Module, *batches: torch.Tensor) -> dict:
    workload = trace(model, (batches[0],), name="net")
    return input_statistics(model, workload, [(x,) for x in batches], workload.layers)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (1, 3), padding=(0, 2), dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 8, 3, groups=2, padding="same"),
    ],
    ids=lambda conv: str(conv.extra_repr()),
)
def test_a_convolutions_moments_are_those_of_its_unfolded_input(conv: nn.Conv2d) -> None:
    x = seeded(3, 4, 9, 7)
    padded = F.pad(x, conv._reversed_padding_repeated_twice)
    columns = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride)
    vectors = columns.unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    found = of(nn.Sequential(conv).eval(), x)["0.weight"]
    assert found.rows == vectors.shape[1]
    assert torch.allclose(found.moments, vectors.transpose(1, 2) @ vectors / found.rows, atol=1e-5)
    assert torch.allclose(found.means, vectors.mean(dim=1), atol=1e-6)


def test_a_linear_layer_counts_every_token_of_every_batch() -> None:
    first, second = seeded(2, 5, 8), seeded(1, 5, 8) + 1
    rows = torch.cat([first, second]).flatten(0, 1)
    found = of(nn.Sequential(nn.Linear(8, 3)).eval(), first, second)["0.weight"]
    assert found.rows == 15
    assert torch.allclose(found.moments[0], rows.T @ rows / 15, atol=1e-5)
    assert torch.allclose(found.means[0], rows.mean(dim=0), atol=1e-6)


def test_a_one_dimensional_convolution_is_unfolded_along_its_one_axis() -> None:
    x = seeded(2, 3, 10)
    vectors = x.unfold(2, 4, 2).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    found = of(nn.Sequential(nn.Conv1d(3, 5, 4, stride=2)).eval(), x)["0.weight"]
    assert torch.allclose(found.moments[0], vectors.T @ vectors / len(vectors), atol=1e-5)


def test_many_positions_are_sampled_without_bias_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)).eval(), seeded(4, 2, 40, 40)
    whole = of(conv, x)["0.weight"]
    monkeypatch.setattr(statistics, "LEAST_ROWS", 2000)
    first, again = (of(conv, x)["0.weight"] for _ in range(2))
    assert first.rows == 2000
    assert torch.equal(first.moments, again.moments)
    # 2,000 of 6,400 normal numbers: a mean square deviates by about sqrt(2 / 2000) = 3 %.
    assert torch.allclose(first.moments.diagonal(dim1=1, dim2=2), whole.moments.diagonal(dim1=1, dim2=2), rtol=0.15)


def test_layers_that_do_not_fit_into_the_budget_are_measured_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    whole = of(model, seeded(6, 8))
    monkeypatch.setattr(statistics, "BUDGET_BYTES", 1)
    parts = of(model, seeded(6, 8))
    assert parts.keys() == whole.keys() == {"0.weight", "2.weight"}
    assert all(torch.equal(parts[key].moments, whole[key].moments) for key in whole)


def test_layers_whose_reading_is_not_known_have_no_statistics() -> None:
    circular = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")).eval()
    assert of(circular, seeded(1, 2, 5, 5)) == {}
    assert of(nn.Sequential(nn.ConvTranspose2d(2, 2, 3)).eval(), seeded(1, 2, 5, 5)) == {}


def test_the_shape_of_rows_follows_groups() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8))
    workload = trace(model.eval(), (seeded(1, 4, 9, 9),), name="net")
    assert [shape_of(layer) for layer in workload.layers] == [(2, 4, 18), (8, 1, 9)]
