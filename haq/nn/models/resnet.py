"""ResNet-18, ResNet-50 and ResNeXt-50 with torchvision's state-dict keys and shapes: its checkpoints load unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut; the 3x3 carries the stride ("V1.5", as torchvision).

    groups: of the 3x3. group_width: channels of a group in the first stage (Xie et al. 2017: "32x4d" is 32 and 4).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, *, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        inner = channels * group_width // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)  # type: ignore[no-any-return]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A 1x1 projection where the shape changes, else nothing (and then no state-dict keys)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


@dataclass(frozen=True)
class BlockKind:
    """make(input channels, channels, stride) builds a block that puts out `expansion` times `channels`."""

    make: Callable[[int, int, int], nn.Module]
    expansion: int


BASIC = BlockKind(BasicBlock, BasicBlock.expansion)
BOTTLENECK = BlockKind(Bottleneck, Bottleneck.expansion)
RESNEXT = BlockKind(partial(Bottleneck, groups=32, group_width=4), Bottleneck.expansion)


class ResNet(nn.Module):
    """Stem, four stages of blocks, global average pool, classifier. Input: (batch, in_channels, height, width)."""

    def __init__(self, block: BlockKind, depths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(block: BlockKind, in_channels: int, channels: int, depth: int, *, stride: int) -> nn.Sequential:
    rest = [block.make(channels * block.expansion, channels, 1) for _ in range(depth - 1)]
    return nn.Sequential(block.make(in_channels, channels, stride), *rest)


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-18: 11,689,512 parameters with 1,000 classes."""
    return ResNet(BASIC, (2, 2, 2, 2), num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-50: 25,557,032 parameters with 1,000 classes."""
    return ResNet(BOTTLENECK, (3, 4, 6, 3), num_classes, in_channels)


def resnext50_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNeXt-50 32x4d: 25,028,904 parameters with 1,000 classes."""
    return ResNet(RESNEXT, (3, 4, 6, 3), num_classes, in_channels)
