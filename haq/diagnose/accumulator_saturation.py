"""accumulator-saturation: the sum of integer products does not fit where it is summed.

Mechanism: products of 8-bit codes are summed in an accumulator. int32 holds more than 66,000 of the largest ones; int16
two of them. On x86 without VNNI two neighbouring products of u8 and s8 are added in a saturating int16 first.

Statistic: the share of sums, computed exactly on served data, that the target's accumulator cuts off, and the bits that
the largest one needs.

Threshold: one sum in ten thousand: clipped sums are its largest numbers, and a range observer clips as many (0.01 %,
`percentile` in haq.nn.observers).

Targets: TPU v3, v4 and A100 sum in fp32 or int32, the HTP on mobile in int32: none of them saturates at 8 bits. x86
processors without VNNI do in pairs, and so do kernels with 16-bit accumulators on older phones.

Repair: wide_accumulator, the precise kernel (ONNX Runtime: session.x64quantprecision=1), or weights of 7 bits, whose
pairs always fit (ONNX Runtime's reduce_range).
"""

from __future__ import annotations

from collections.abc import Iterator

from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Change, Repair, Suspicion

MODE = "accumulator-saturation"
REPAIR = "take the kernel with wide sums, or weights of fewer bits"
THRESHOLD_SHARE = 1e-4


def detect(evidence: Evidence) -> Iterator[Suspicion]:
    """Layers of which the accumulator cuts off more than a ten-thousandth of the sums."""
    for name, layer in evidence.layers.items():
        output = layer.output
        if output is not None and output.saturated_share > THRESHOLD_SHARE:
            text = (
                f"{output.saturated_share:.2%} of the sums of {name} do not fit their accumulator; the largest takes "
                f"{output.accumulator_bits} bits"
            )
            yield Suspicion(
                MODE, name, "saturated_share", output.saturated_share, THRESHOLD_SHARE, output.saturated_share, text,
                Change((Repair("wide_accumulator", name),)), layers=(name,),
            )  # fmt: skip
