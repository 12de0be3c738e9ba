"""GoogLeNet without auxiliary heads, with the state-dict keys and shapes of torchvision's.

torchvision's weights come from TensorFlow and take pixels scaled to -1..1. Its `transform_input`, which turns the usual
normalization into that one, is no part of the network here: normalize so in the first place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AUXILIARY = ("aux1.", "aux2.")
"""The heads that only training uses; torchvision's file holds them."""


@dataclass(frozen=True)
class InceptionSpec:
    """One row of table 1 in Szegedy et al. 2015: input, 1x1, 3x3 with its reduction, "5x5" with its, pool projection.

    The "5x5" convolutions are 3x3 in torchvision, as in the TensorFlow network that its weights come from.
    """

    in_channels: int
    one: int
    three_reduced: int
    three: int
    five_reduced: int
    five: int
    pooled: int


class BasicConv2d(nn.Module):
    """Convolution, batch norm, ReLU; the borders keep the size at stride 1."""

    def __init__(self, in_channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches over one input, joined along the channels (Szegedy et al. 2015, figure 2b)."""

    def __init__(self, spec: InceptionSpec) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(spec.in_channels, spec.one, 1)
        self.branch2 = nn.Sequential(
            BasicConv2d(spec.in_channels, spec.three_reduced, 1), BasicConv2d(spec.three_reduced, spec.three, 3)
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(spec.in_channels, spec.five_reduced, 1), BasicConv2d(spec.five_reduced, spec.five, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv2d(spec.in_channels, spec.pooled, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Stem, nine inception modules, pool, classifier. Input: (batch, in_channels, height, width)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(in_channels, 64, 7, 2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(InceptionSpec(192, 64, 96, 128, 16, 32, 32))
        self.inception3b = Inception(InceptionSpec(256, 128, 128, 192, 32, 96, 64))
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(InceptionSpec(480, 192, 96, 208, 16, 48, 64))
        self.inception4b = Inception(InceptionSpec(512, 160, 112, 224, 24, 64, 64))
        self.inception4c = Inception(InceptionSpec(512, 128, 128, 256, 24, 64, 64))
        self.inception4d = Inception(InceptionSpec(512, 112, 144, 288, 32, 64, 64))
        self.inception4e = Inception(InceptionSpec(528, 256, 160, 320, 32, 128, 128))
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(InceptionSpec(832, 256, 160, 320, 32, 128, 128))
        self.inception5b = Inception(InceptionSpec(832, 384, 192, 384, 48, 128, 128))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4c(self.inception4b(self.inception4a(x)))
        x = self.maxpool4(self.inception4e(self.inception4d(x)))
        x = self.inception5b(self.inception5a(x))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]

    def own_keys(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state without the auxiliary heads."""
        return {key: value for key, value in state.items() if not key.startswith(AUXILIARY)}


def googlenet(num_classes: int = 1000, in_channels: int = 3) -> GoogLeNet:
    """GoogLeNet: 6,624,904 parameters with 1,000 classes."""
    return GoogLeNet(num_classes, in_channels)
