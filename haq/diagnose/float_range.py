"""float-range: numbers leave the range of a float format, or its few bits are not enough for a sum.

Mechanism: fp16 ends at 65504: what is larger becomes infinite, and infinity minus infinity is no number. Below 6e-8 it
becomes zero. bf16 has fp32's range but 8 bits of precision: a small difference of large terms has few of them left.

Statistic: the share of FP32's numbers that become infinite in the format, or zero though they are not, in what a layer
reads and in what it gives; whether it gives what is not finite although it reads FP32's inputs, which weights beyond
the format do; and the signal over the rounding error of what the layer reads and gives, alone on FP32's inputs.

Threshold: one number that is not finite is enough. Of precision, half of the format's bits have to be left: 6.02 dB for
each of 5.5 bits of fp16 (33.1 dB) and of 4 of bf16 (24.1 dB); one rounding leaves about 70 and 50 dB (IEEE 754: 11 and
8 bits).

Targets: fp16 is what 16 bits mean on A100 and on mobile (HTP): both overflow. TPU v3 and v4 take bf16, which does not
overflow but is short of bits in sums and norms.

Repair: bf16 where the target has it, fp32 for that op where it has not, or scale the channel down and its readers up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from haq.diagnose.evidence import Evidence, LayerEvidence
from haq.diagnose.finding import Change, Suspicion
from haq.diagnose.ranges import DB_PER_BIT, noise
from haq.precision import FP32, Format

MODE = "float-range"
REPAIR = "run the layer in bf16, or in fp32, or scale its channels down and their readers up"
PRECISION_BITS = {"fp16": 11, "bf16": 8}
"""Significant bits, the hidden one included (IEEE 754; bf16 has fp32's exponent and 7 fraction bits)."""
THRESHOLD_SHARE = 0.0


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Layers in 16-bit floats that overflow there, or keep less than half of the format's bits."""
    for name, layer in evidence.layers.items():
        fmt = layer.precision.compute
        if fmt.name not in PRECISION_BITS or layer.output is None:
            continue
        change = Change(raised=((name, FP32),))
        beyond = max(layer.output.overflow_share, *(o.overflow_share for o in layer.operands), 0.0)
        if beyond > THRESHOLD_SHARE:
            text = (
                f"{beyond:.2%} of what {name} reads or gives become infinite in {fmt}: the largest is "
                f"{_largest(layer):.3g}, and {fmt} ends at {fmt.largest:.5g}"
            )
            yield Suspicion(
                MODE, name, "overflow_share", beyond, THRESHOLD_SHARE, math.inf, text, change, layers=(name,)
            )
            continue
        if layer.output.not_finite and layer.output.sqnr_db == -math.inf:
            text = f"{name} gives {layer.output.not_finite} numbers that are not finite, as its weights leave {fmt}"
            count = float(layer.output.not_finite)
            yield Suspicion(MODE, name, "not_finite", count, 0.0, math.inf, text, change, layers=(name,))
            continue
        least, worst = precision_db(fmt), _signal_db(layer)
        if worst < least:
            lost = max(layer.output.underflow_share, *(o.underflow_share for o in layer.operands), 0.0)
            text = f"{fmt} leaves {name} {worst:.1f} dB of {least * 2:.0f}; {lost:.2%} of its numbers become zero there"
            yield Suspicion(MODE, name, "signal_db", worst, least, noise(worst), text, change, layers=(name,))


def precision_db(fmt: Format) -> float:
    """What half of the format's bits are worth."""
    return PRECISION_BITS[fmt.name] * DB_PER_BIT / 2


def _signal_db(layer: LayerEvidence) -> float:
    """The worst signal over rounding error of what the layer reads and gives. Stored integers are no part of it."""
    assert layer.output is not None
    own = [layer.output.sqnr_db] if not layer.precision.weight.is_integer else []
    return min(*own, *(operand.sqnr_db for operand in layer.operands), math.inf, math.inf)


def _largest(layer: LayerEvidence) -> float:
    read = [max(abs(end) for end in operand.seen) for operand in layer.operands]
    assert layer.output is not None
    return max(layer.output.largest, *read, 0.0)
