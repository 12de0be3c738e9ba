"""A small trained-like network in memory, and a config of it made by hand, for the tests of what opens configs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.candidate import config_id
from haq.nn.checkpoints import weights_hash
from haq.precision import Assignment, Precision

LAYERS = ("0", "3", "7")
"""Two convolutions and a linear layer of `network`."""


def network(seed: int = 0) -> nn.Sequential:
    """conv, batch norm, relu, conv, relu, pool, flatten, linear; in eval mode, with statistics of its inputs."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    net(images(9, 64))
    return net.eval()


def images(seed: int, count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def content(model: nn.Module, precisions: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """A valid config of `network` with these precisions of its LAYERS; `more` replaces top-level keys."""
    layers = dict(zip(LAYERS, precisions, strict=True))
    executed = Assignment.of({name: Precision.parse(text) for name, text in layers.items()})
    return {
        "schema": "haq.config/v1",
        "id": config_id(executed, "reference"),
        "model": {"model": "Sequential", "weights_hash": weights_hash(model)},
        "target": {"name": "reference", "batch": 1, "title": "nominal", "confidence": "nominal"},
        "layers": layers,
        "requested_bits": dict.fromkeys(layers, 8),
        "quantization": {"ptq": ["bn_fold", "mse"], "observer": "mse"},
        "metrics": {"size_bytes": {"value": 1000, "kind": "modelled"}},
        "fallbacks": [],
        **more,
    }
