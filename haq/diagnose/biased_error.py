"""biased-error: rounding shifts the mean of output channels, and the shift adds up from layer to layer.

Mechanism: the weights of a channel are few and are rounded once, so that their errors do not cancel over samples; times
inputs that are mostly positive (behind a ReLU) they move the channel's mean. Sums that are cut off instead of rounded,
a bias in a coarse format, or a wrong zero-point term do the same.

Statistic: the share of the layer's output error, alone on FP32's inputs, whose power is the channels' mean error.

Threshold: a share of 0.5: taking the means out halves the error's power, 3.01 dB, half a bit; and means that carry at
least what rounding an even spread to 8 bits costs (49.92 dB below the signal: 6.02 b + 1.76, Bennett 1948). Layers in
which a range, a scale or a gain is wrong are left out, since those shift means too.

Targets: all with integer weights or activations: mobile, A100 in int8, and TPU v3 and v4 for stored integers.

Repair: bias, which takes each channel's mean error on served data out of the layer's bias (Nagel et al. 2019, 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from haq.diagnose.channel_imbalance import THRESHOLD_DB, weight_imbalance
from haq.diagnose.evidence import Evidence, LayerEvidence, OutputEvidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.ranges import HALF_BIT_DB, even_spread_db, gain_db, noise

MODE = "biased-error"
REPAIR = "correct the bias by the mean error of each output channel"
THRESHOLD_SHARE = 0.5
ROUNDING_TO_8_BITS = noise(even_spread_db(8))
GAIN_SHARE = 0.5
"""Of the weight's error: from here on the stored weight is a multiple of FP32's, which is no bias."""


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Layers with a bias whose output's error is mostly its mean, where nothing else explains that."""
    biased = {layer.name for layer in evidence.workload.layers if layer.bias_elements}
    for name, layer in evidence.layers.items():
        if name not in biased or layer.output is None or has_other_cause(layer):
            continue
        share = mean_share(layer.output)
        severity = noise(layer.output.sqnr_db) * share
        if share >= THRESHOLD_SHARE and severity >= ROUNDING_TO_8_BITS:
            shifted = int(np.argmax(np.abs(layer.output.mean_error)))
            text = (
                f"{share:.0%} of the error of {name}'s output is a shift of channel means, by up to "
                f"{layer.output.mean_error[shifted]:.3g} (channel {shifted}); the error is {layer.output.sqnr_db:.1f} "
                "dB below the signal"
            )
            yield Suspicion(
                MODE, name, "mean_share", share, THRESHOLD_SHARE, severity, text,
                Change((Repair("bias", name),)), layers=(name,),
            )  # fmt: skip


def mean_share(output: OutputEvidence) -> float:
    """The share of the error's power that is the channels' mean error; 0 without an error."""
    means = float(np.square(output.mean_error).sum())
    power = means + float(np.square(output.error_deviation).sum())
    return means / power if power > 0 else 0.0


def has_other_cause(layer: LayerEvidence) -> bool:
    """Whether a range, a scale, a gain or an overflow of the layer is wrong, whose by-product a shift is."""
    output, weight = layer.output, layer.weight
    if output is None or not math.isfinite(output.sqnr_db):
        return True
    if any(gain_db(operand) >= HALF_BIT_DB for operand in layer.operands):
        return True
    if weight is None:
        return False
    return bool(
        weight.lost_channels or weight.gain_share >= GAIN_SHARE or weight_imbalance(weight).gain_db >= THRESHOLD_DB
    )
