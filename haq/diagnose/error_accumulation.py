"""error-accumulation: every layer is good enough alone, and together they are not.

Mechanism: small errors that point the same way, such as a gain lost in every layer or a mean that moves, add up in
amplitude. The statistics that batch norms were folded with no longer fit what the layers give.

Statistic: the power of the shift of channel means and of the change of channel deviations in the whole quantized
network, relative to FP32's signal. Beside it, the loss of the layers together over the sum of what each loses alone.

Threshold: statistics that are off by as much as 4 bits of rounding, 25.84 dB below the signal (6.02 b + 1.76, Bennett
1948), in three layers or more. Either three layers' weights are off by a mere factor, by as much, so that their errors
point the same way; or no layer has half of the errors that all have alone, and together they lose at least twice the
sum: independent errors add up to it (divergence is of second order), equal ones of n layers to n times it.

Targets: all, most of all those with 4-bit weights: A100, and stored integers on TPU v3 and v4.

Repair: reestimate, which gives every channel FP32's mean and deviation back, layer after layer on served data (as
batch-norm re-estimation does, Peters et al. 2023); then reconstruction of the layers in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from haq.diagnose.effects import is_measured, regained, size
from haq.diagnose.evidence import Evidence, LayerEvidence, OutputEvidence
from haq.diagnose.finding import Bench, Change, Effect, Repair, Suspicion
from haq.diagnose.ranges import even_spread_db, noise

MODE = "error-accumulation"
REPAIR = "re-estimate each channel's mean and deviation on served data"
THRESHOLD_POWER = noise(even_spread_db(4))
THRESHOLD_RATIO = 2.0
MOST_OF_ONE = 0.5
LAYERS = 3
"""So many have to be off: of one layer or two that is their own fault."""


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """The network, if its statistics moved and no single layer did it."""
    alone = {name: _alone(layer) for name, layer in evidence.layers.items()}
    moved = {
        name: drift(layer.output)
        for name, layer in evidence.layers.items()
        if layer.output is not None and drift(layer.output) >= THRESHOLD_POWER
    }
    total = sum(alone.values())
    if len(moved) < LAYERS or not 0 < total < np.inf:
        return
    # Where the errors are that add up: layers that are off by a mere factor, else those with more than an even part.
    sources = off_by_a_factor(evidence)
    if not sources:
        sources = tuple(name for name, own in alone.items() if own >= total / len(alone))
        if max(alone.values()) > MOST_OF_ONE * total:
            return
    worst = max(moved, key=lambda name: moved[name])
    text = (
        f"channel statistics are off in {len(moved)} layers, most in {worst} ({10 * np.log10(1 / moved[worst]):.1f} dB "
        f"below the signal); no layer has more than {max(alone.values()) / total:.0%} of their errors alone"
    )
    yield Suspicion(
        MODE, sources[0], "statistics_power", moved[worst], THRESHOLD_POWER, moved[worst], text,
        Change((Repair("reestimate"),)), layers=sources,
    )  # fmt: skip


def drift(output: OutputEvidence) -> float:
    """The mean over channels of squared shift and squared change of deviation, in units of FP32's deviation."""
    gain, shift = np.nan_to_num(output.joint_gain, nan=1.0), np.nan_to_num(output.joint_shift)
    return float(np.mean((gain - 1) ** 2 + shift**2)) if len(gain) else 0.0


def adds_up(
    bench: Bench,
    evidence: Evidence,
    suspicion: Suspicion,
    base: Change,
    raised: Change,
    tell: Callable[[int], None] = lambda left: None,
) -> bool:
    """Whether the suspected layers together lose twice what they lose alone, every other layer in FP32.

    Of layers that are off by a mere factor it is known without measuring that their errors point the same way.
    base: what is undone already. raised: all layers in FP32. tell: hears after each measurement how many are left at
    most; they end as soon as the layers measured so far lose too much alone.
    """
    if set(suspicion.layers) == set(off_by_a_factor(evidence)):
        return True
    exact = bench.measure(raised)

    def lost(kept: tuple[str, ...]) -> Effect:
        others = tuple((layer, precision) for layer, precision in raised.raised if layer not in kept)
        return regained(bench.measure(base | Change(raised=others)), exact)

    together, alone, left = lost(suspicion.layers), 0.0, len(suspicion.layers)
    tell(left)
    if not is_measured(together):
        return False
    for layer in suspicion.layers:
        alone, left = alone + max(size(lost((layer,))), 0.0), left - 1
        tell(left)
        if THRESHOLD_RATIO * alone > size(together):
            return False
    return True


def _alone(layer: LayerEvidence) -> float:
    return noise(layer.output.sqnr_db) if layer.output is not None else 0.0


def off_by_a_factor(evidence: Evidence) -> tuple[str, ...]:
    """Layers of which most of the weight's error is that all of it is too small or too large, by more than 4 bits of
    rounding cost; empty where they are fewer than LAYERS."""
    weights = {name: layer.weight for name, layer in evidence.layers.items() if layer.weight is not None}
    found = tuple(
        name for name, w in weights.items() if w.gain_share >= MOST_OF_ONE and noise(w.sqnr_db) >= THRESHOLD_POWER
    )
    return found if len(found) >= LAYERS else ()
