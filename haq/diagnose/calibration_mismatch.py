"""calibration-mismatch: the data that ranges were calibrated on are not what is served.

Mechanism: a static range fits the data that it was found on. If served numbers are larger they are clipped, and the
error grows with their excess; if they are smaller, most codes are never used.

Statistic: dB that the range with the least squared error on served data gains over the range in use, where that range
clips, or where it is too wide and calibration data do lie beyond what is served. Beside it the clipped share and the
ratio of widths, served over calibrated.

Threshold: 3.01 dB, half a bit, as for outliers: twice the noise that has to be. A range that misses the largest of
enough calibration numbers loses far less, so that the sampling error of calibration stays under it. Where the range is
too wide, more than 0.1 % of the calibration data, zeros left out, beyond what is served: fewer are outliers.

Targets: all with static ranges: mobile (HTP), A100 with TensorRT. Ranges per token are found as the network runs; float
activations (TPU v3, v4, fp16 and bf16 anywhere) have none.

Repair: recalibrate on served data, on more of them, or take ranges per token where the target has them.
"""

from __future__ import annotations

from collections.abc import Iterator

from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Change, Repair, Suspicion
from haq.diagnose.ranges import HALF_BIT_DB, BadRange, bad_ranges, width, words

MODE = "calibration-mismatch"
REPAIR = "recalibrate the operand's range on data like those that are served"
THRESHOLD_DB = HALF_BIT_DB


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Operands whose range fits other data than those served."""
    for found in bad_ranges(evidence):
        if found.is_stretched:
            continue
        layer, index = found.layer.layer, found.operand.index
        yield Suspicion(
            MODE, layer, "recalibration_gain_db", found.gain_db, THRESHOLD_DB, found.severity, _text(found),
            Change((Repair("recalibrate", layer, index),)), index=index, layers=(layer,),
        )  # fmt: skip


def _text(found: BadRange) -> str:
    operand = found.operand
    if found.is_wide:
        harm = f"{operand.codes_used:.0%} of the codes are in use"
    else:
        harm = f"{operand.clipped_share:.2%} of its numbers are clipped"
        if operand.calibrated_clipped_share is not None:
            harm += f" (of calibration data {operand.calibrated_clipped_share:.2%})"
    text = (
        f"{operand.layer} reads numbers in {words(operand.seen)} with a range of {words(operand.range)}: {harm}; "
        f"{words(operand.best_range)} would gain {found.gain_db:.1f} dB"
    )
    if operand.calibrated is not None and width(operand.calibrated) > 0:
        ratio = width(operand.seen) / width(operand.calibrated)
        text += f"; served data are {ratio:.2g} times as wide as those of calibration"
    return text
