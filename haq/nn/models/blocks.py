"""What several of torchvision's mobile networks are made of: convolution with norm and activation, rounded widths."""

from __future__ import annotations

from torch import nn


def conv_norm(
    in_channels: int, out: int, kernel: int, activation: type[nn.Module] | None, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and (unless None) an activation in place, as keys 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8, never below 90 % of `channels` nor below 8 (Howard's `_make_divisible`)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
