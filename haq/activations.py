"""What reaches one operand of a layer, in a few kilobytes: a summary that is added to, merged, and kept in a config.

Numbers inside one input hang together, inputs do not. So beside the sketch of the numbers there are two over inputs, of
one number from each: their means and their largest magnitudes. Comparing these with the number of inputs as n is exact
whatever the correlation inside an input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from haq.errors import InputError
from haq.sketch import Sketch

Ends = tuple[float, float]
NUMBERS_K = 64
"""Of the sketch of an operand's numbers: ranks within 4.0 %, about 1 kB."""
INPUTS_K = 128
"""Of the sketches over inputs: exact up to 128 inputs, beyond that ranks within 2.1 %; 0.5 to 1.6 kB."""
STATISTICS = ("mean", "peak")
"""What is kept of every input: the mean of the operand's numbers, and their largest magnitude."""


@dataclass(eq=False)
class Summary:
    """What one operand of a layer has been: it is added to as inputs pass.

    covers: the ends beyond which its quantizer clips by more than half a step; None where it has none. inputs: how many
    were seen; not_finite: those of them with a NaN or an infinity, which count nowhere else. numbers: how many numbers
    the others hold, `total` their sum, clipped how many of them lie outside `covers`. sketch: of a fixed subsample of
    the numbers, equally many of each input. means, peaks: sketches of one number per input, its mean and its largest
    magnitude. fp32_shift: by how much mean and peak lie below these in the FP32 network on the same inputs, on average.
    """

    covers: Ends | None = None
    inputs: int = 0
    not_finite: int = 0
    numbers: int = 0
    total: float = 0.0
    clipped: int = 0
    low: float = math.inf
    high: float = -math.inf
    sketch: Sketch = field(default_factory=lambda: Sketch(NUMBERS_K), repr=False)
    means: Sketch = field(default_factory=lambda: Sketch(INPUTS_K), repr=False)
    peaks: Sketch = field(default_factory=lambda: Sketch(INPUTS_K), repr=False)
    fp32_shift: tuple[float, float] | None = None

    @property
    def clipped_share(self) -> float:
        return self.clipped / self.numbers if self.numbers else 0.0

    def merge(self, other: Summary) -> None:
        """Add what the other has seen of the same operand; raises InputError where the other's quantizer differs."""
        if other.covers != self.covers:
            raise InputError("summaries of different quantizers", got=other.covers, expected=f"{self.covers}")
        self.inputs += other.inputs
        self.not_finite += other.not_finite
        self.numbers += other.numbers
        self.total += other.total
        self.clipped += other.clipped
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        for mine, theirs in ((self.sketch, other.sketch), (self.means, other.means), (self.peaks, other.peaks)):
            mine.merge(theirs)

    def copy(self) -> Summary:
        return replace(self, sketch=self.sketch.copy(), means=self.means.copy(), peaks=self.peaks.copy())

    def to_json(self) -> dict[str, Any]:
        """As a config's `activations` hold it; raises InputError where no input was finite."""
        if not self.numbers:
            raise InputError("no finite input was seen", got=f"{self.inputs} inputs", expected="finite activations")
        known: dict[str, Any] = {
            "inputs": self.inputs, "count": self.numbers, "low": _short(self.low), "high": _short(self.high),
            "mean": _short(self.total / self.numbers),
        }  # fmt: skip
        if self.not_finite:
            known["not_finite"] = self.not_finite
        if self.covers is not None:
            known["covers"] = {"low": _short(self.covers[0]), "high": _short(self.covers[1])}
            known["clipped_share"] = self.clipped_share
        if self.fp32_shift is not None:
            known["fp32_shift"] = dict(zip(STATISTICS, map(_short, self.fp32_shift), strict=True))
        return known | {
            "sketch": self.sketch.to_text(), "input_means": self.means.to_text(), "input_peaks": self.peaks.to_text()
        }  # fmt: skip

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> Summary:
        """The inverse of `to_json`; raises InputError on text that is no sketch."""
        covers, shift, count = raw.get("covers"), raw.get("fp32_shift"), raw["count"]

        def sketch(key: str) -> Sketch:
            return Sketch.from_text(raw[key], f"{where}.{key}")

        return cls(
            covers=None if covers is None else (covers["low"], covers["high"]),
            inputs=raw["inputs"],
            not_finite=raw.get("not_finite", 0),
            numbers=count,
            total=raw["mean"] * count,
            clipped=round(raw.get("clipped_share", 0.0) * count),
            low=raw["low"],
            high=raw["high"],
            sketch=sketch("sketch"),
            means=sketch("input_means"),
            peaks=sketch("input_peaks"),
            fp32_shift=None if shift is None else (shift["mean"], shift["peak"]),
        )


def _short(value: float) -> float:
    """Nine significant digits, which tell any two float32 numbers apart."""
    return float(f"{value:.9g}")


def summaries_of(config: Mapping[str, Any], where: str) -> dict[str, Summary]:
    """`layer:index` -> the summary that a config holds; raises InputError where it holds none."""
    if not config.get("activations"):
        raise InputError(
            "the config holds no activation summaries to compare with", where=where, expected="`activations`",
            way_out="haq export CONFIG --format json --out NEW.json writes them, with haq[drift] installed",
        )  # fmt: skip
    return {key: Summary.from_json(raw, f"{where}: activations {key}") for key, raw in config["activations"].items()}
