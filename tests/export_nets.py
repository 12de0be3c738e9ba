"""Small networks as configs with their numbers, for the tests of exporters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from haq.nn.bundle import Bundle
from haq.nn.exportable import Exportable, exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.prepare import bundle_in_memory
from haq.nn.task import Batch, ClassificationTask, Inputs
from haq.nn.trace import trace


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pictures(nn.Module):
    """A convolution, a depthwise and a pointwise one with batch norms, a shortcut, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.pointwise(torch.relu(self.depthwise(x)))
        return self.head(torch.relu(x).mean((2, 3)))


class Texts(nn.Module):
    """Embedded tokens, one attention with projections, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 64)
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.up, self.head = nn.Linear(64, 96), nn.Linear(96, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (layer(x).unflatten(-1, (2, 32)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(nn.functional.gelu(self.up(self.norm(x + seen))).mean(1))


def picture_bundle(model: nn.Module | None = None, shape: tuple[int, ...] = (3, 8, 8)) -> Bundle:
    model = (Pictures() if model is None else model).eval()
    return bundle_of(model, [(numbers(32, *shape, seed=seed),) for seed in range(3)])


def text_bundle() -> Bundle:
    ids = [torch.randint(0, 50, (16, 12), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    return bundle_of(Texts().eval(), [(batch,) for batch in ids])


def bundle_of(model: nn.Module, batches: list[Inputs]) -> Bundle:
    """The model on three batches: to calibrate on, search and validation."""
    splits = {
        split: (Batch(batch, torch.zeros(len(next(iter(batch))), dtype=torch.long)),)
        for split, batch in zip(("search", "validation"), batches[1:], strict=True)
    }
    return bundle_in_memory(model, [batches[0]], ClassificationTask(splits, (batches[0],), "7"), None)


def config_of(bundle: Bundle, layers: Mapping[str, str] | str) -> dict[str, object]:
    """A config such as a search would have written. layers: layer -> formats, or the formats of all."""
    folded = fold_batch_norm(bundle.model, bundle.example)
    names = trace(folded, bundle.example, name=bundle.name).layer_names
    chosen = dict.fromkeys(names, layers) if isinstance(layers, str) else {name: layers[name] for name in names}
    return {
        "schema": "haq.config/v1",
        "id": "abc",
        "model": {"model": "own", "weights_hash": bundle.weights_hash},
        "target": {"name": "reference"},
        "layers": chosen,
        "quantization": {"ptq": ["bn_fold", "mse"], "observer": "minmax"},
        "metrics": {},
        "provenance": {"data_hash": bundle.data_hash},
    }


def exportable_of(bundle: Bundle, layers: Mapping[str, str] | str) -> Exportable:
    return exportable(config_of(bundle, layers), bundle, Path("config.json"))
