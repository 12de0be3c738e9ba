"""sensitive-operator: an op cannot take few bits although its ranges and scales are as good as they can be.

Mechanism: a softmax, a norm, a GELU, the first or the last layer turns a small error of what it reads into a large one
of what the network answers. No range is wrong; the op needs more codes.

Statistic: of ops that a target forces to integers, the bits that its result is left short of 8. Of layers, the share of
the loss that comes back when that layer alone runs in FP32, once every other cause has been looked for.

Threshold: 1 bit. Of layers, a fifth of what is left of the loss, and far above the other layers tried: their median and
five times the median absolute deviation (Leys et al. 2013, J. Exp. Soc. Psychol. 49, take 2.5 to 3; 5 is stricter).

Targets: mobile (HTP) runs softmax, norms and GELU on integers unless told otherwise. A100 and TPU v3, v4 keep them in
fp16 or bf16.

Repair: raise that one op or layer to 16 bits, and leave the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from haq.diagnose.effects import is_measured, size
from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.localize import Shares
from haq.diagnose.ranges import even_spread_db, noise
from haq.precision import FP32

MODE = "sensitive-operator"
REPAIR = "raise that one op or layer to 16 bits"
THRESHOLD_BITS = 1.0
THRESHOLD_SHARE = 0.2
DEVIATIONS = 5.0


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Layers behind which an op is forced to fewer than 7 bits."""
    for layer, bits in evidence.forced_bits_lost.items():
        if bits >= THRESHOLD_BITS:
            text = f"the op behind {layer} is forced to {8 - bits:.1f} bits"
            severity = min(noise(even_spread_db(8)) * 4**bits, 1.0)
            yield Suspicion(
                MODE, layer, "bits_lost", bits, THRESHOLD_BITS, severity, text,
                Change((Repair("unforce", layer),)), layers=(layer,),
            )  # fmt: skip


def judge(shares: Shares, left: float, explained: Collection[str]) -> Iterator[Suspicion]:
    """Layers whose share of what is left of the loss is far above the others', and in which no cause was proved.

    left: that loss, in the unit that effects are ordered by.
    """
    found = shares.of(left)
    for layer, share in sorted(found.items(), key=lambda entry: -entry[1]):
        others = np.array([value for name, value in found.items() if name != layer])
        usual = float(np.median(others)) if len(others) else 0.0
        spread = float(np.median(np.abs(others - usual))) if len(others) else 0.0
        is_far = share >= THRESHOLD_SHARE and share > usual + DEVIATIONS * spread
        if is_far and layer not in explained and is_measured(shares.layers[layer]):
            text = f"{layer} alone in FP32 brings {share:.0%} of what is left of the loss back, others {usual:.0%}"
            yield Suspicion(
                MODE, layer, "share", share, THRESHOLD_SHARE, size(shares.layers[layer]), text,
                Change(raised=((layer, FP32),)), layers=(layer,),
            )  # fmt: skip
