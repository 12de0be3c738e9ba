"""MobileNetV3 small and large with the state-dict keys and shapes of torchvision, whose checkpoints load unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from haq.nn.models.blocks import round_to_8

# The published TensorFlow checkpoints' batch norm, which torchvision follows.
BatchNorm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)


@dataclass(frozen=True)
class BlockSpec:
    """One row of tables 1 and 2 in Howard et al. 2019: kernel, expansion size, output, SE, non-linearity, stride."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hardswish: bool
    stride: int


SMALL = tuple(
    BlockSpec(*row)
    for row in (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    )
)
LARGE = tuple(
    BlockSpec(*row)
    for row in (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    )
)


def _conv(
    in_channels: int, out: int, kernel: int, activation: type[nn.Module] | None, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and (unless None) an activation in place, as keys 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        BatchNorm(out),
    ]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in [0, 1] computed from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_to_8(channels / 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expand 1x1 (left out where nothing expands), depthwise, squeeze-excite, project 1x1, shortcut."""

    def __init__(self, in_channels: int, spec: BlockSpec) -> None:
        super().__init__()
        activation = nn.Hardswish if spec.hardswish else nn.ReLU
        layers: list[nn.Module] = []
        if spec.expanded != in_channels:
            layers.append(_conv(in_channels, spec.expanded, 1, activation))
        layers.append(
            _conv(spec.expanded, spec.expanded, spec.kernel, activation, stride=spec.stride, groups=spec.expanded)
        )
        if spec.squeeze:
            layers.append(SqueezeExcitation(spec.expanded))
        layers.append(_conv(spec.expanded, spec.out, 1, None))
        self.block = nn.Sequential(*layers)
        self.has_shortcut = spec.stride == 1 and in_channels == spec.out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out + x if self.has_shortcut else out


class MobileNetV3(nn.Module):
    """Stem, inverted residuals, last 1x1, pool, two-layer classifier. Input: (batch, in_channels, height, width)."""

    def __init__(self, blocks: Sequence[BlockSpec], hidden: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        widths = [16, *(spec.out for spec in blocks)]
        last = 6 * widths[-1]
        self.features = nn.Sequential(
            _conv(in_channels, 16, 3, nn.Hardswish, stride=2),
            *(InvertedResidual(width, spec) for width, spec in zip(widths, blocks, strict=False)),
            _conv(widths[-1], last, 1, nn.Hardswish),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=0.2, inplace=True),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def mobilenet_v3_small(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV3:
    """MobileNetV3-Small: 2,542,856 parameters with 1,000 classes."""
    return MobileNetV3(SMALL, 1024, num_classes, in_channels)


def mobilenet_v3_large(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV3:
    """MobileNetV3-Large: 5,483,032 parameters with 1,000 classes."""
    return MobileNetV3(LARGE, 1280, num_classes, in_channels)
