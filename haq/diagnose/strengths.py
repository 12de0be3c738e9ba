"""How strong each planted fault is by default, what the number means, and which numbers make sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haq.errors import InputError


@dataclass(frozen=True)
class Strength:
    """defaults: weak, middle and strong. least, most: both allowed. whole: whether only whole numbers make sense."""

    defaults: tuple[float, float, float]
    least: float
    most: float
    meaning: str
    whole: bool = False


STRENGTHS: Mapping[str, Strength] = {
    "activation-outliers": Strength(
        (64, 128, 256), 1, 1e6,
        "how many times wider a few outliers in calibration data made the static range of the first operand",
    ),
    "channel-imbalance": Strength(
        (1024, 4096, 16384), 2, 65536,
        "the ratio of the largest to the smallest channel factor of a weight that is stored with one scale",
    ),
    "biased-error": Strength(
        (1, 2, 4), 1e-6, 100,
        "by how many of its own standard deviations every output channel is shifted up or down",
    ),
    "calibration-mismatch": Strength(
        (8, 16, 32), 1, 1e6, "how many times larger served activations are than those of the calibration data"
    ),
    "float-range": Strength(
        (4, 8, 16), 1, 1e4, "how far the largest calibrated value passes fp16's 65504, up to the next power of two"
    ),
    "accumulator-saturation": Strength(
        (3, 4, 5), 1, 30, "how many bits the accumulator is narrower than the largest calibrated sum", whole=True
    ),
    "degenerate-scale": Strength((0.5, 0.75, 0.9), 1e-6, 1, "the share of output channels whose scale became zero"),
    "sensitive-operator": Strength((3, 2, 1), 1, 16, "the bits that the op behind the layer is forced to", whole=True),
    "join-mismatch": Strength(
        (128, 256, 512), 1, 1e6, "how many times larger the other input of the join is than what this layer gives"
    ),
    "error-accumulation": Strength(
        (0.2, 0.3, 0.4), 1e-6, 0.99, "the share of its gain that every layer of the block loses"
    ),
    "not-executed": Strength(
        (1, 2, 4), 1, 10_000, "how many layers, from this one on, ask for what the target does not execute", whole=True
    ),
    "no-speedup": Strength(
        (2, 4, 8), 1, 10_000, "how many islands of one 8-bit layer, from this one on, lie among 16-bit layers",
        whole=True,
    ),
}  # fmt: skip
"""Mode -> its strengths. All are fixed before any detection run."""

ACCURACY_MODES = tuple(mode for mode in STRENGTHS if mode not in ("not-executed", "no-speedup"))
COST_MODES = ("not-executed", "no-speedup")


def check_strength(mode: str, strength: float) -> None:
    """Raises InputError on a strength that makes no sense for the mode, saying what it means. mode: of STRENGTHS."""
    known = STRENGTHS[mode]
    if not known.least <= strength <= known.most or (known.whole and strength != int(strength)):
        kind = "a whole number" if known.whole else "a number"
        raise InputError(
            "no strength of this fault", where=mode, got=strength,
            expected=f"{kind} from {known.least:g} to {known.most:g}: {known.meaning}",
            way_out=f"for example {', '.join(f'{value:g}' for value in known.defaults)}",
        )  # fmt: skip
