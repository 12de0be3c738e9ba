"""EfficientNet-B0 and B4 with the state-dict keys and shapes of torchvision, whose checkpoints load unchanged.

Stochastic depth is left out: it has no weights and does nothing in inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from haq.nn.models.blocks import conv_norm, round_to_8

STEM = 32


@dataclass(frozen=True)
class StageSpec:
    """One row of table 1 in Tan and Le 2019: expansion, kernel, stride of the first block, output, repeats."""

    expansion: int
    kernel: int
    stride: int
    out: int
    repeats: int


B0 = (
    StageSpec(1, 3, 1, 16, 1),
    StageSpec(6, 3, 2, 24, 2),
    StageSpec(6, 5, 2, 40, 2),
    StageSpec(6, 3, 2, 80, 3),
    StageSpec(6, 5, 1, 112, 3),
    StageSpec(6, 5, 2, 192, 4),
    StageSpec(6, 3, 1, 320, 1),
)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a sigmoid gate computed from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU(inplace=True)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x  # type: ignore[no-any-return]


class MBConv(nn.Module):
    """Expand 1x1 (left out where nothing expands), depthwise, squeeze-excite, project 1x1, shortcut.

    The gate is squeezed to a quarter of the block's input, not of what it scales.
    """

    def __init__(self, in_channels: int, spec: StageSpec, stride: int) -> None:
        super().__init__()
        inner = in_channels * spec.expansion
        layers: list[nn.Module] = [conv_norm(in_channels, inner, 1, nn.SiLU)] if spec.expansion != 1 else []
        self.block = nn.Sequential(
            *layers,
            conv_norm(inner, inner, spec.kernel, nn.SiLU, stride=stride, groups=inner),
            SqueezeExcitation(inner, in_channels // 4),
            conv_norm(inner, spec.out, 1, None),
        )
        self.has_shortcut = stride == 1 and in_channels == spec.out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out + x if self.has_shortcut else out


class EfficientNet(nn.Module):
    """Stem, seven stages, last 1x1, pool, classifier. Input: (batch, in_channels, height, width)."""

    def __init__(
        self, stem: int, stages: Sequence[StageSpec], num_classes: int, in_channels: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [stem, *(stage.out for stage in stages)]
        last = 4 * widths[-1]
        self.features = nn.Sequential(
            conv_norm(in_channels, stem, 3, nn.SiLU, stride=2),
            *(_stage(width, stage) for width, stage in zip(widths, stages, strict=False)),
            conv_norm(widths[-1], last, 1, nn.SiLU),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout, inplace=True), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def _stage(in_channels: int, spec: StageSpec) -> nn.Sequential:
    rest = [MBConv(spec.out, spec, 1) for _ in range(spec.repeats - 1)]
    return nn.Sequential(MBConv(in_channels, spec, spec.stride), *rest)


def scaled(stages: Sequence[StageSpec], width: float, depth: float) -> tuple[StageSpec, ...]:
    """The stages with `width` times the channels and `depth` times the blocks (Tan and Le 2019, equation 3)."""
    return tuple(
        replace(stage, out=round_to_8(width * stage.out), repeats=math.ceil(depth * stage.repeats)) for stage in stages
    )


def efficientnet_b0(num_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet-B0, for 224x224: 5,288,548 parameters with 1,000 classes."""
    return EfficientNet(STEM, B0, num_classes, in_channels, dropout=0.2)


def efficientnet_b4(num_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet-B4, for 380x380: 19,341,616 parameters with 1,000 classes."""
    return EfficientNet(round_to_8(1.4 * STEM), scaled(B0, 1.4, 1.8), num_classes, in_channels, dropout=0.4)
