"""EfficientNet-Lite0, 2 and 4 for any input size, with the state-dict keys of the package efficientnet-lite-pytorch."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from haq.nn.models.blocks import round_to_8
from haq.nn.models.efficientnet import B0, StageSpec

# TensorFlow's batch norm as in Google's efficientnet/lite: momentum 0.99 there is 0.01 in torch's terms.
BatchNorm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
STEM, HEAD = 32, 1280


LITE0 = B0
"""No squeeze-and-excitation anywhere, ReLU6 throughout: that is what "Lite" means. The stages are those of B0."""


def scaled(width: float, depth: float) -> tuple[StageSpec, ...]:
    """Lite0's stages with `width` times the channels and `depth` times the blocks.

    The first and the last stage keep their number of blocks, as stem and head keep their channels (`fix_head_stem`).
    """
    wide = tuple(replace(stage, out=round_to_8(width * stage.out)) for stage in LITE0)
    deep = (replace(stage, repeats=math.ceil(depth * stage.repeats)) for stage in wide[1:-1])
    return wide[0], *deep, wide[-1]


def same_padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`x` with TensorFlow's SAME border for a strided convolution: as even as it goes, the odd row at the far side."""
    needed = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    (top, left) = (total // 2 for total in needed)
    return nn.functional.pad(x, (left, needed[1] - left, top, needed[0] - top))


class InvertedBlock(nn.Module):
    """Expand 1x1 (left out where nothing expands), depthwise, project 1x1, shortcut where shapes agree.

    drop_rate: chance that training skips the block for a sample (stochastic depth).
    """

    def __init__(self, channels: int, spec: StageSpec, stride: int, drop_rate: float) -> None:
        super().__init__()
        inner = channels * spec.expansion
        self.expands = spec.expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self._bn0 = BatchNorm(inner)
        # Modules, not functions: cross-layer equalization puts clips of its own in their place.
        self._clip0, self._clip1 = nn.ReLU6(), nn.ReLU6()
        # At stride 1 the SAME border is symmetric and the convolution's own; at stride 2 it is not, and padded apart.
        padding = spec.kernel // 2 if stride == 1 else 0
        self._depthwise_conv = nn.Conv2d(inner, inner, spec.kernel, stride, padding, groups=inner, bias=False)
        self._bn1 = BatchNorm(inner)
        self._project_conv = nn.Conv2d(inner, spec.out, 1, bias=False)
        self._bn2 = BatchNorm(spec.out)
        self.has_shortcut = stride == 1 and channels == spec.out
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        out = self._clip0(self._bn0(self._expand_conv(x))) if self.expands else x
        if self._depthwise_conv.stride[0] > 1:
            out = same_padded(out, self._depthwise_conv.kernel_size[0], self._depthwise_conv.stride[0])
        out = self._clip1(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        if not self.has_shortcut:
            return out  # type: ignore[no-any-return]
        if self.training and self.drop_rate > 0:
            kept = torch.rand((len(x), 1, 1, 1), device=x.device) >= self.drop_rate
            out = out * kept / (1 - self.drop_rate)
        return out + x  # type: ignore[no-any-return]


class EfficientNetLite(nn.Module):
    """Stem, inverted blocks, last 1x1, pool, classifier. Input: (batch, 3, height, width)."""

    def __init__(self, stages: tuple[StageSpec, ...], num_classes: int, dropout: float, drop_rate: float) -> None:
        super().__init__()
        rows = [(stage, stage.stride if i == 0 else 1) for stage in stages for i in range(stage.repeats)]
        widths = [STEM, *(stage.out for stage, _ in rows)]
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = BatchNorm(STEM)
        self._clip0, self._clip1 = nn.ReLU6(), nn.ReLU6()
        self._blocks = nn.ModuleList(
            InvertedBlock(width, stage, stride, drop_rate * i / len(rows))
            for i, (width, (stage, stride)) in enumerate(zip(widths, rows, strict=False))
        )
        self._conv_head = nn.Conv2d(widths[-1], HEAD, 1, bias=False)
        self._bn1 = BatchNorm(HEAD)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self._clip0(self._bn0(self._conv_stem(same_padded(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        x = self._clip1(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(self._avg_pooling(x).flatten(1)))  # type: ignore[no-any-return]


def efficientnet_lite0(num_classes: int = 1000, drop_rate: float = 0.2) -> EfficientNetLite:
    """EfficientNet-Lite0: 4,652,008 parameters with 1,000 classes."""
    return EfficientNetLite(LITE0, num_classes, dropout=0.2, drop_rate=drop_rate)


def efficientnet_lite2(num_classes: int = 1000, drop_rate: float = 0.2) -> EfficientNetLite:
    """EfficientNet-Lite2, for 260x260: 6,092,072 parameters with 1,000 classes."""
    return EfficientNetLite(scaled(1.1, 1.2), num_classes, dropout=0.3, drop_rate=drop_rate)


def efficientnet_lite4(num_classes: int = 1000, drop_rate: float = 0.2) -> EfficientNetLite:
    """EfficientNet-Lite4, for 300x300: 13,006,568 parameters with 1,000 classes."""
    return EfficientNetLite(scaled(1.4, 1.8), num_classes, dropout=0.3, drop_rate=drop_rate)
