"""channel-imbalance: one scale serves channels of very different range.

Mechanism: a scale follows the widest channel that shares it. A channel 2^k times narrower loses k of its bits, whatever
the next layer multiplies it by.

Statistic: of weights, how much worse the mean noise of a channel relative to its own signal is than with a scale per
channel, in dB; a channel's noise follows from its scale and its largest magnitude, numbers taken as evenly spread, and
is at most its signal. Of activations, what a range per channel gains over the best one for all, in dB, where the
layer's output tells: the gain alone is large in every transformer and mostly harmless.

Threshold: weights 6.02 dB, a bit. Activations 6.02 dB, and an output signal over the noise of its operands below
25.84 dB, what an even spread on 4 bits has (6.02 b + 1.76, Bennett 1948): 8 bits that are worth no more than 4.

Targets: weights with one scale per tensor: mobile runtimes without per-channel kernels, and some ops elsewhere
(depthwise and transposed convolutions, embeddings). A100, TPU v3 and v4 scale weights per channel. Activations have one
scale wherever they are integers.

Repair: per_channel, a scale for each output channel of the weight; equalize, which moves the ranges of what a layer
reads into its weight (Nagel et al. 2019; Xiao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from haq.diagnose.evidence import Evidence, LayerEvidence, OperandEvidence, OutputEvidence, WeightEvidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.ranges import DB_PER_BIT, calibrated_on_zeros, even_spread_db, gain_db, noise

MODE = "channel-imbalance"
REPAIR = "give each channel its own weight scale, or equalize the channels of what the layer reads"
THRESHOLD_DB = DB_PER_BIT
WORTH_4_BITS_DB = even_spread_db(4)


@dataclass(frozen=True)
class Imbalance:
    """gain_db: of a scale per channel. severity: mean noise over signal of a channel that it takes away."""

    gain_db: float
    severity: float


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Weights and operands whose channels' ranges are too far apart for the scale that they share."""
    for layer in evidence.layers.values():
        if layer.weight is not None and (found := weight_imbalance(layer.weight)).gain_db >= THRESHOLD_DB:
            spread = _spread(layer.weight.channel_largest)
            text = (
                f"channels of the weight of {layer.layer} differ in range by up to {spread:.3g}: scales that fit them "
                f"would gain {found.gain_db:.1f} dB in a channel's mean signal-to-noise ratio"
            )
            yield Suspicion(
                MODE, layer.layer, "channel_gain_db", found.gain_db, THRESHOLD_DB, found.severity, text,
                Change((Repair("per_channel", layer.layer),)), layers=(layer.layer,),
            )  # fmt: skip
        for operand in layer.operands:
            if (gain := operand_gain_db(layer, operand)) >= THRESHOLD_DB:
                yield _of_operand(layer, operand, gain)


def weight_imbalance(weight: WeightEvidence) -> Imbalance:
    """What scales per channel would gain; nothing for float weights. Lost and dead channels are no part of it.

    Evenly spread numbers of largest magnitude a have power a²/3, rounding to steps s has s²/12: a quarter of (s/a)².
    """
    left_out = np.zeros(len(weight.scales), dtype=bool)
    left_out[[c for c in (*weight.lost_channels, *weight.dead_channels) if c < len(left_out)]] = True
    if left_out.all():
        return Imbalance(0.0, 0.0)
    steps = weight.scales[~left_out] / weight.channel_largest[~left_out]
    own = 0.25 / weight.format.largest**2
    mean = float(np.minimum(steps**2 / 4, 1.0).mean())
    return Imbalance(10 * float(np.log10(max(mean, own) / own)), max(mean - own, 0.0))


def operand_gain_db(layer: LayerEvidence, operand: OperandEvidence) -> float:
    """What ranges per channel would gain where the layer's output suffers; 0 elsewhere.

    Attention products have nothing to move the ranges into.
    """
    if not operand.format.is_integer or operand.format.per_token or layer.weight is None or layer.output is None:
        return 0.0
    suffers = _with_best_range_db(layer.output, operand) < WORTH_4_BITS_DB and not calibrated_on_zeros(operand)
    same = operand.channel_sqnr_db == operand.best_sqnr_db
    return operand.channel_sqnr_db - operand.best_sqnr_db if suffers and not same else 0.0


def _of_operand(layer: LayerEvidence, operand: OperandEvidence, gain: float) -> Suspicion:
    assert layer.output is not None
    above = _with_best_range_db(layer.output, operand)
    severity = noise(above) * (1 - 10 ** (-gain / 10))
    text = (
        f"channels of what {layer.layer} reads differ in range by up to {_spread(operand.channel_largest):.3g}: "
        f"a range for each would gain {gain:.1f} dB, and its output is {above:.1f} dB above their noise"
    )
    return Suspicion(
        MODE, layer.layer, "channel_gain_db", gain, THRESHOLD_DB, severity, text,
        Change((Repair("equalize", layer.layer, operand.index),)), index=operand.index, layers=(layer.layer,),
    )  # fmt: skip


def _with_best_range_db(output: OutputEvidence, operand: OperandEvidence) -> float:
    """The output's signal over the noise that its operand would cause with the best one range."""
    return output.operand_sqnr_db + gain_db(operand)


def _spread(largest: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """The largest over the smallest that is not zero."""
    alive = largest[largest > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0
