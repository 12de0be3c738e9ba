"""activation-outliers: a few numbers stretch the range of an operand, and most codes stay unused.

Mechanism: a static range has to be chosen once. Where it covers a few numbers that are far from all others, its steps
are coarse for those others. All but a few of the calibration data are as narrow as what is served.

Statistic: dB of signal-to-quantization-noise that the range with the least squared error gains over the range in use,
on served data; beside it the share of codes in use. Clipping is no part of it, since the best range is the narrower.

Threshold: 3.01 dB, half a bit: the noise is twice what it has to be (6.02 dB per bit, Bennett 1948, "Spectra of
quantized signals"); and at most 0.1 % of calibration data, zeros left out, beyond what is served: as many outliers as
Dettmers et al. 2022 ("LLM.int8()") count in features of large models. Of more than that it is a calibration-mismatch.

Targets: static per-tensor ranges suffer: int8 on mobile (HTP) and on A100 with TensorRT. Ranges per token, as language
models take them on A100, do not, as far as outliers stay in few tokens. TPU v3 and v4 store integers but read bf16.

Repair: clip, to the range with the least squared error; where outliers carry the signal, migrate them into the weights
(SmoothQuant) or give the operand 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.ranges import HALF_BIT_DB, bad_ranges, words

MODE = "activation-outliers"
REPAIR = "clip the operand's range to the one with the least squared error"
THRESHOLD_DB = HALF_BIT_DB


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Operands whose range is wider than all but a few of the served and the calibration data."""
    for found in bad_ranges(evidence):
        if not found.is_stretched:
            continue
        layer, operand = found.layer.layer, found.operand
        text = (
            f"{layer} reads numbers in {words(operand.seen)} with a range of {words(operand.range)}: "
            f"{words(operand.best_range)} would gain {found.gain_db:.1f} dB, and {operand.codes_used:.0%} of the codes "
            "are in use"
        )
        yield Suspicion(
            MODE, layer, "clipping_gain_db", found.gain_db, THRESHOLD_DB, found.severity, text,
            Change((Repair("clip", layer, operand.index),)), index=operand.index, layers=(layer,),
        )  # fmt: skip
