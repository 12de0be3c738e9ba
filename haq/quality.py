"""Figures of quality: which metric drives a search, what else was read off the same pass, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Direction = Literal["maximize", "minimize"]

TOP1, LOSS, KL, AGREEMENT = "top-1 accuracy", "loss", "kl", "agreement"
WORST_CLASS = "worst_class_drop_points"
"""How far the class fell that lost most; it can be limited, but drives no search."""

DIRECTIONS: dict[str, Direction] = {TOP1: "maximize", LOSS: "minimize", KL: "minimize", AGREEMENT: "maximize"}
"""The metrics that haq reads off logits: any of them can drive a search. Loss and KL are in nats, others fractions."""


@dataclass(frozen=True)
class MainMetric:
    """The metric that drives a search. is_fraction: lies in [0, 1] and is shown in percent, else as the number it is.

    A drop is 100 x (FP32 - candidate), or 100 x (candidate - FP32) where the metric is minimized: positive is worse.
    Its points are percentage points of a fraction, and hundredths of the unit of any other metric.
    """

    name: str = "accuracy"
    direction: Direction = "maximize"
    is_fraction: bool = True

    @property
    def noun(self) -> str:
        """What a person calls it."""
        return "accuracy" if self.name == TOP1 else self.name

    def shown(self, value: float) -> str:
        """The value as a person reads it: `95.00 %`, `0.1234`."""
        return f"{100 * value:.2f} %" if self.is_fraction else f"{value:.4g}"

    def points(self, value: float) -> str:
        """Points of drop as a person reads them: `+0.31`."""
        return f"{value:+.2f}" if self.is_fraction else f"{value:+.3g}"

    @property
    def drop_formula(self) -> str:
        """What one point of drop means."""
        better, worse = ("FP32", "candidate") if self.direction == "maximize" else ("candidate", "FP32")
        return f"100 x ({better} - {worse}) of {self.noun}"


ACCURACY = MainMetric()
"""What a search goes by unless something else is said."""


def main_metric(name: str, direction: Direction, fp32: float | None) -> MainMetric:
    """The metric with a guess at its unit: what is maximized and within [0, 1] at FP32 is taken for a fraction."""
    return MainMetric(name, direction, direction == "maximize" and (fp32 is None or 0 <= fp32 <= 1))


@dataclass(frozen=True)
class Quality:
    """One figure beside the main metric. value: absent when unknown. fp32: the same of FP32 on the same samples."""

    name: str
    direction: Direction
    value: float | None = None
    fp32: float | None = None


@dataclass(frozen=True)
class ClassDrops:
    """Top-1 accuracy lost per class. points: 100 x (FP32 - candidate), None for a class without samples.

    worst: name, or else number, of the class that lost most (the first of equals); worst_samples: how many it has.
    """

    points: tuple[float | None, ...]
    worst: str
    worst_samples: int

    @property
    def worst_points(self) -> float:
        return max(point for point in self.points if point is not None)


@dataclass(frozen=True)
class QualityReport:
    """What one pass over a split said beside the main metric. not_finite: samples with NaN or infinite outputs.

    Such a sample counts as wrong; a mean that it leaves undefined is unknown.
    """

    figures: tuple[Quality, ...] = ()
    classes: ClassDrops | None = None
    not_finite: int = 0

    def value(self, name: str) -> float | None:
        """The figure's value, None when it is unknown."""
        return next((figure.value for figure in self.figures if figure.name == name), None)

    def against(self, fp32: QualityReport | None) -> QualityReport:
        """The report with FP32's values beside its own."""
        if fp32 is None:
            return self
        return replace(self, figures=tuple(replace(f, fp32=fp32.value(f.name)) for f in self.figures))

    def to_json(self) -> dict[str, Any]:
        known = ({key: v for key, v in asdict(figure).items() if v is not None} for figure in self.figures)
        raw: dict[str, Any] = {"metrics": {figure.pop("name"): figure for figure in known}}
        if self.classes is not None:
            raw["classes"] = asdict(self.classes)
        return {**raw, "not_finite_samples": self.not_finite} if self.not_finite else raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> QualityReport:
        classes = raw.get("classes")
        return cls(
            tuple(Quality(name, **figure) for name, figure in raw["metrics"].items()),
            None if classes is None else ClassDrops(**{**classes, "points": tuple(classes["points"])}),
            raw.get("not_finite_samples", 0),
        )
