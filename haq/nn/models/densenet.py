"""DenseNet-121 with the state-dict keys and shapes of torchvision, whose checkpoints load unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

STEM, GROWTH, BOTTLENECK = 64, 32, 4
"""Channels of the stem, channels that every dense layer adds, and how many times those its 1x1 puts out."""

OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""torchvision's own file predates the ban on dots in module names: `denselayer1.norm.1.weight`."""


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3 on all maps so far, joined anew in every layer (Huang et al. 2017, DenseNet-B).

    The first norm reads a concatenation and belongs to no convolution before it, so that it never folds.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, 1, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))
        return self.conv2(self.relu2(self.norm2(x)))  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """Layers `denselayer1`, ... of which each reads the block's input and what all before it put out."""

    def __init__(self, in_channels: int, depth: int) -> None:
        super().__init__()
        for i in range(depth):
            self.add_module(f"denselayer{i + 1}", DenseLayer(in_channels + i * GROWTH))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.children():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def _transition(in_channels: int) -> nn.Sequential:
    """Halves channels, height and width."""
    layers = nn.Sequential()
    layers.add_module("norm", nn.BatchNorm2d(in_channels))
    layers.add_module("relu", nn.ReLU(inplace=True))
    layers.add_module("conv", nn.Conv2d(in_channels, in_channels // 2, 1, bias=False))
    layers.add_module("pool", nn.AvgPool2d(2, 2))
    return layers


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions between them, norm, pool, classifier. Input: (batch, in_channels, h, w)."""

    def __init__(self, depths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(in_channels, STEM, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(STEM))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        channels = STEM
        for i, depth in enumerate(depths, start=1):
            if i > 1:
                self.features.add_module(f"transition{i - 1}", _transition(channels))
                channels //= 2
            self.features.add_module(f"denseblock{i}", DenseBlock(channels, depth))
            channels += depth * GROWTH
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.features(x), inplace=True)
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]

    def own_keys(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with the names that torchvision gives it on loading."""
        return {OLD_NAME.sub(r"\1\2.", key): value for key, value in state.items()}


def densenet121(num_classes: int = 1000, in_channels: int = 3) -> DenseNet:
    """DenseNet-121: 7,978,856 parameters with 1,000 classes."""
    return DenseNet((6, 12, 24, 16), num_classes, in_channels)
