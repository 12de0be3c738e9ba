"""join-mismatch: two tensors of very different range are added or put beside each other with one scale.

Mechanism: a compiler that gives both inputs of an add or a concatenation the same scale takes the larger one's. The
smaller input then is left with few codes.

Statistic: log2 of how much coarser the shared step is than the step that the smaller input would take by itself.

Threshold: 1 bit, 6.02 dB (Bennett 1948): inputs of like range differ by less.

Targets: mobile, where the HTP's concatenation takes one scale for all inputs and an add requantizes to its output's.
A100 with TensorRT adds in higher precision unless both inputs are quantized alike. TPU v3 and v4 add in bf16 and lose
nothing.

Repair: own_scale, a quantizer for each input, or the join in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.ranges import even_spread_db, noise

MODE = "join-mismatch"
REPAIR = "give each input of the join a quantizer of its own, or join in 16 bits"
THRESHOLD_BITS = 1.0


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Joins whose smaller input loses a bit or more to the scale of the larger one."""
    for join in evidence.joins:
        if join.bits_lost >= THRESHOLD_BITS:
            text = (
                f"{join.layer} goes into {join.node} with the scale of a larger input: {join.bits_lost:.1f} of its 8 "
                "bits are lost"
            )
            severity = min(noise(even_spread_db(8)) * 4**join.bits_lost, 1.0)
            yield Suspicion(
                MODE, join.layer, "bits_lost", join.bits_lost, THRESHOLD_BITS, severity, text,
                Change((Repair("own_scale", join.layer),)), layers=(join.layer,),
            )  # fmt: skip
