"""degenerate-scale: a scale that its stored format cannot hold, or one that was found on nothing but zeros.

Mechanism: the scale of a channel with tiny weights underflows in fp16: it becomes zero, or subnormal with few digits,
which many devices flush to zero. The channel is gone, and only its bias is left. An operand that was zero throughout
calibration gets an arbitrary scale.

Statistic: `lost_share`, the share of the channels alive in FP32 whose scale is zero or below the smallest normal number
of its format; of operands whether calibration saw zeros alone and served data do not.

Threshold: any: a scale below the smallest normal number is outside of what the format promises (IEEE 754: 2^-14 for
fp16, 2^-126 for bf16 and fp32). Channels that are zero in FP32 too lose nothing and are not counted.

Targets: fp16 scales, as mobile runtimes and A100 kernels for 4-bit weights keep them. TPU v3 and v4 keep scales in bf16
or fp32, whose smallest normal number no trained channel reaches.

Repair: rescale, fresh scales in fp32, or a floor at the format's smallest normal number; prune channels that are dead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from haq.diagnose.evidence import Evidence, WeightEvidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.ranges import calibrated_on_zeros, words

MODE = "degenerate-scale"
REPAIR = "store fresh scales in a wider format"
THRESHOLD_SHARE = 0.0
SMALLEST_STEP = {"fp16": 2.0**-24, "bf16": 2.0**-133, "fp32": 2.0**-149}
"""IEEE 754: between neighbouring subnormal numbers; what is rounded to them is off by up to half of it."""


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Layers with channels that their scales lost, and operands calibrated on zeros."""
    for layer in evidence.layers.values():
        weight = layer.weight
        if weight is not None and len(weight.scales) and weight.lost_channels:
            alive = len(weight.scales) - len(weight.dead_channels)
            share = len(weight.lost_channels) / alive
            zeros = int((weight.scales[list(weight.lost_channels)] == 0).sum())
            text = (
                f"{len(weight.lost_channels)} of {alive} channels of {layer.layer} have scales below the smallest "
                f"normal number of {weight.scale_format}, {zeros} of them zero"
            )
            yield Suspicion(
                MODE, layer.layer, "lost_share", share, THRESHOLD_SHARE, lost_noise(weight) / alive, text,
                Change((Repair("rescale", layer.layer),)), layers=(layer.layer,),
            )  # fmt: skip
        for operand in layer.operands:
            if calibrated_on_zeros(operand):
                text = f"{layer.layer} reads numbers in {words(operand.seen)}, and calibration saw nothing but zeros"
                yield Suspicion(
                    MODE, layer.layer, "calibrated_width", 0.0, 0.0, 1.0, text,
                    Change((Repair("recalibrate", layer.layer, operand.index),)), index=operand.index,
                    layers=(layer.layer,),
                )  # fmt: skip


def lost_noise(weight: WeightEvidence) -> float:
    """Noise over signal, summed over the lost channels: 1 for each whose scale is zero, else what rounding the scale
    to subnormal numbers costs."""
    scales = weight.scales[list(weight.lost_channels)]
    step = SMALLEST_STEP[weight.scale_format.name]
    relative = np.where(scales > 0, step / np.where(scales > 0, scales, 1.0), np.inf)
    return float(np.minimum(np.square(relative) / 12, 1.0).sum())
