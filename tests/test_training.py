"""The training loop learns, repeats itself from a seed, and leaves torch's global state alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from haq.nn.checkpoints import weights_hash
from haq.nn.training import Progress, Recipe, TensorBatches, jittered, schedule, seeded, train

RECIPE = Recipe(epochs=4, batch_size=16, learning_rate=0.05, threads=1)


def blobs() -> tuple[Tensor, Tensor]:
    """Two classes, apart by four deviations."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(96) % 2
    return torch.randn(96, 2, generator=generator) + 4.0 * labels[:, None], labels


def classifier() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


class Named(nn.Module):
    """Takes keywords and returns an object with logits, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = classifier()

    def forward(self, x: Tensor) -> object:
        return type("Output", (), {"logits": self.net(x)})()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_separates_two_blobs(optimizer: str) -> None:
    inputs, labels = blobs()
    model = classifier()
    losses: list[Progress] = []
    recipe = Recipe(epochs=8, batch_size=16, learning_rate=0.05, optimizer=optimizer)
    state = train(model, TensorBatches(inputs, labels, 16), recipe, on_epoch=losses.append)
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.95
    assert [p.epoch for p in losses] == list(range(1, 9))
    assert losses[-1].loss < losses[0].loss
    assert not model.training
    assert state.keys() == model.state_dict().keys()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    inputs, labels = blobs()

    def trained(seed: int) -> str:
        model = classifier()
        train(model, TensorBatches(inputs, labels, 16), Recipe(**{**vars(RECIPE), "seed": seed}))
        return weights_hash(model)

    assert trained(0) == trained(0) != trained(1)


def test_the_callers_random_numbers_and_threads_are_untouched() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(classifier(), TensorBatches(*blobs(), 16), RECIPE)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_named_inputs_and_groups_with_their_own_rate_work() -> None:
    inputs, labels = blobs()
    model = Named()
    frozen = model.net[0].weight.detach().clone()
    groups = [{"params": model.net[3].parameters(), "lr": 0.1}]
    train(model, TensorBatches({"x": inputs}, labels, 16), RECIPE, groups=groups)
    assert torch.equal(model.net[0].weight, frozen)


def test_an_epoch_shows_every_whole_batch_once() -> None:
    numbers = torch.arange(10)
    batches = list(TensorBatches(numbers, numbers, 4).epoch(torch.Generator().manual_seed(0)))
    seen = torch.cat([labels for _, labels in batches]).tolist()
    assert [len(labels) for _, labels in batches] == [4, 4]
    assert len(set(seen)) == 8
    assert all(torch.equal(inputs[0], labels) for inputs, labels in batches)  # type: ignore[index]


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    numbers = torch.arange(3)
    source = TensorBatches(numbers, numbers, 4)
    assert [len(labels) for _, labels in source.epoch(torch.Generator())] == [3]
    assert len(source) == 1


def test_jitter_of_nothing_changes_nothing() -> None:
    images = torch.rand(3, 2, 8, 8)
    torch.testing.assert_close(jittered(0, 0, 0)(images, torch.Generator()), images, atol=1e-5, rtol=0)


def test_jitter_moves_by_at_most_the_asked_part_of_the_side() -> None:
    images = torch.zeros(64, 1, 32, 32)
    images[:, :, 16, 16] = 1.0
    moved = jittered(0, 0, 2 / 32)(images, torch.Generator().manual_seed(0))
    far = torch.ones(32, 32, dtype=torch.bool)
    far[13:20, 13:20] = False  # two pixels and the neighbour that bilinear sampling touches
    assert moved[:, 0, far].abs().max() == 0
    assert not torch.equal(moved[0], moved[1])


def test_the_time_left_is_the_mean_epoch_times_the_epochs_left() -> None:
    assert Progress(epoch=2, epochs=10, loss=1.0, elapsed_s=6.0).remaining_s == pytest.approx(24.0)


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine_to_zero() -> None:
    factors = [schedule(Recipe(epochs=1, batch_size=1, learning_rate=1.0, warmup=0.2), 10)(k) for k in range(11)]
    # Two of ten steps rise; then (1 + cos(pi k / 8)) / 2 for k = 0, 1, ..., 8.
    assert factors == pytest.approx([0.5, 1.0, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(9))])
    assert factors[-1] == 0.0
