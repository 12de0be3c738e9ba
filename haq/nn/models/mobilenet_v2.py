"""MobileNetV2 with the state-dict keys and shapes of torchvision, whose checkpoints load unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from haq.nn.models.blocks import conv_norm

STEM, LAST = 32, 1280


@dataclass(frozen=True)
class StageSpec:
    """One row of table 2 in Sandler et al. 2018: expansion t, output c, repeats n, stride s of the first block."""

    expansion: int
    out: int
    repeats: int
    stride: int


STAGES = (
    StageSpec(1, 16, 1, 1),
    StageSpec(6, 24, 2, 2),
    StageSpec(6, 32, 3, 2),
    StageSpec(6, 64, 4, 2),
    StageSpec(6, 96, 3, 1),
    StageSpec(6, 160, 3, 2),
    StageSpec(6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand 1x1 (left out where nothing expands), depthwise, project 1x1, shortcut where shapes agree."""

    def __init__(self, in_channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers = [conv_norm(in_channels, inner, 1, nn.ReLU6)] if expansion != 1 else []
        layers.append(conv_norm(inner, inner, 3, nn.ReLU6, stride=stride, groups=inner))
        # The projection's convolution and norm stand in the block itself, not in a part of their own.
        self.conv = nn.Sequential(*layers, *conv_norm(inner, out, 1, None))
        self.has_shortcut = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, last 1x1, pool, classifier. Input: (batch, in_channels, height, width)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        rows = [(stage, stage.stride if i == 0 else 1) for stage in STAGES for i in range(stage.repeats)]
        widths = [STEM, *(stage.out for stage, _ in rows)]
        self.features = nn.Sequential(
            conv_norm(in_channels, STEM, 3, nn.ReLU6, stride=2),
            *(
                InvertedResidual(width, stage.out, stage.expansion, stride)
                for width, (stage, stride) in zip(widths, rows, strict=False)
            ),
            conv_norm(widths[-1], LAST, 1, nn.ReLU6),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]


def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 of width 1: 3,504,872 parameters with 1,000 classes."""
    return MobileNetV2(num_classes, in_channels)
