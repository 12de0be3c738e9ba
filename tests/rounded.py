"""Weights rounded to nearest by hand, for comparison with what the quantizers do."""

import torch

from haq.nn.quantizers import SMALLEST_SCALE, QuantizedWeight


def by_channel(weight, axis):
    """(channels, elements of one channel)."""
    return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)


def along(values, like, axis):
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


def quantize_weight(weight, ranges, axis, fmt):
    """Channel c is clipped at ±ranges[c]; a channel of zeros gets scale 1."""
    largest = int(fmt.largest)
    scales = torch.where(ranges > 0, (ranges / largest).clamp(min=SMALLEST_SCALE), torch.ones_like(ranges))
    codes = torch.round(weight / along(scales, weight, axis)).clamp_(-largest, largest)
    return QuantizedWeight(fmt, codes.to(torch.int8 if fmt.bits <= 8 else torch.int16), scales, axis)
