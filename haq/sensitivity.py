"""How much each group of layers costs in each executed precision when all else is FP32: the noun, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from haq.precision import FP32, Assignment, Format, Precision
from haq.space import SearchSpace
from haq.textfile import write_atomically

Kind = Literal["kl", "relative error"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Legalize = Callable[[Assignment], Assignment]
"""The bit-widths of all layers -> what a target executes, layer by layer."""


@dataclass(frozen=True)
class Effect:
    """What quantizing something did to the outputs, FP32 everywhere else.

    divergence: mean KL(FP32 || candidate) in nats, or the mean squared error of the outputs as a fraction of their mean
    square; infinite where outputs are not finite. loss_increase: mean cross entropy minus FP32's in nats; absent
    without labels. samples: on how many.
    """

    divergence: float
    loss_increase: float | None
    samples: int

    def __post_init__(self) -> None:
        assert self.divergence >= 0, f"a divergence of {self.divergence}"

    def to_json(self) -> dict[str, Any]:
        loss = {} if self.loss_increase is None else {"loss_increase": _written(self.loss_increase)}
        return {"divergence": _written(self.divergence), **loss, "samples": self.samples}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Effect:
        loss = float(raw["loss_increase"]) if "loss_increase" in raw else None
        return cls(float(raw["divergence"]), loss, raw["samples"])


@dataclass(frozen=True)
class Pair:
    """Two pieces of different groups, and what they did together."""

    first: Assignment
    second: Assignment
    effect: Effect


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The effects of pieces: a group's layers in executed precisions, everything else in FP32.

    measure: what divergences are. samples: calibration samples that each was measured on. sample_forwards: what the
    measurement takes in full forward passes of one sample (a pass that starts halfway counts half), pairs included,
    whether or not a cache spared it this time.
    """

    measure: Kind
    samples: int
    effects: Mapping[Assignment, Effect]
    pairs: tuple[Pair, ...]
    sample_forwards: float

    def of(self, piece: Assignment) -> float | None:
        """The divergence that the piece causes: 0.0 in FP32, the measured one, else an upper bound, else None.

        The bound is the smallest divergence among measured pieces of the same layers that are nowhere wider.
        """
        key = quantized_part(piece)
        if not key:
            return 0.0
        if key in self._measured:
            return self._measured[key]
        return min((self.effects[other].divergence for other in self._narrower(piece)), default=None)

    def is_bound(self, piece: Assignment) -> bool:
        """Whether `of` gives a bound only: the piece itself was not measured, but a narrower one was."""
        key = quantized_part(piece)
        return bool(key) and key not in self._measured and bool(self._narrower(piece))

    def losses(self, space: SearchSpace, executed: Legalize) -> NDArray[np.float64]:
        """(groups, most levels) the divergence of each group at each level; NaN where there is none or it is unknown.

        executed: what the target makes of bit-widths. Infinite where outputs were not finite.
        """
        table = np.full((len(space.groups), max(len(group.bits) for group in space.groups)), np.nan)
        of_width = _uniform(space, executed)
        for row, group in enumerate(space.groups):
            for level, bits in enumerate(group.bits):
                found = self.of(_piece(group.layers, of_width[bits]))
                table[row, level] = np.nan if found is None else found
        return table

    @cached_property
    def _measured(self) -> dict[frozenset[tuple[str, Precision]], float]:
        return {quantized_part(piece): effect.divergence for piece, effect in self.effects.items()}

    @cached_property
    def _by_layers(self) -> dict[frozenset[str], list[Assignment]]:
        found: dict[frozenset[str], list[Assignment]] = {}
        for piece in self.effects:
            found.setdefault(frozenset(piece), []).append(piece)
        return found

    def _narrower(self, piece: Assignment) -> list[Assignment]:
        same_layers = self._by_layers.get(frozenset(piece), [])
        return [
            other for other in same_layers if all(_is_narrower(other.precision(n), piece.precision(n)) for n in piece)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "samples": self.samples,
            "effects": [{"piece": p.to_json(), **effect.to_json()} for p, effect in self.effects.items()],
            "pairs": [
                {"first": p.first.to_json(), "second": p.second.to_json(), **p.effect.to_json()} for p in self.pairs
            ],
            "sample_forwards": self.sample_forwards,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Sensitivity:
        """The inverse of `to_json`."""
        assert raw["measure"] in KINDS, raw["measure"]
        return cls(
            raw["measure"],
            raw["samples"],
            {Assignment.from_json(row["piece"]): Effect.from_json(row) for row in raw["effects"]},
            tuple(
                Pair(Assignment.from_json(row["first"]), Assignment.from_json(row["second"]), Effect.from_json(row))
                for row in raw["pairs"]
            ),
            raw["sample_forwards"],
        )


def write_sensitivity(path: Path, sensitivity: Sensitivity) -> None:
    """Write it as JSON, whole or not at all."""
    write_atomically(path, json.dumps(sensitivity.to_json(), indent=1, allow_nan=False) + "\n")


def read_sensitivity(path: Path) -> Sensitivity:
    """The inverse of `write_sensitivity`."""
    return Sensitivity.from_json(json.loads(path.read_text()))


def pieces_of(space: SearchSpace, targets: Sequence[Legalize]) -> tuple[Assignment, ...]:
    """All that any of the targets executes for any width of any group, each once, in depth order, without FP32."""
    depth = {layer: place for place, layer in enumerate(space.layers)}
    of_width = [_uniform(space, legalize) for legalize in targets]
    found: dict[frozenset[tuple[str, Precision]], Assignment] = {}
    for group in sorted(space.groups, key=lambda group: min(depth[layer] for layer in group.layers)):
        for bits in group.bits:
            for executed in of_width:
                piece = _piece(group.layers, executed[bits])
                found.setdefault(quantized_part(piece), piece)
    found.pop(frozenset(), None)
    return tuple(found.values())


def quantized_part(piece: Assignment) -> frozenset[tuple[str, Precision]]:
    """What of a piece is not FP32: two pieces of equal parts are the same network."""
    return frozenset((layer, piece.precision(layer)) for layer in piece if piece.precision(layer) != FP32)


def _uniform(space: SearchSpace, legalize: Legalize) -> dict[int, Assignment]:
    """Width -> what is executed when every layer asks for it; legalizing goes layer by layer, so a group's part holds
    whatever the others take."""
    widths = sorted({bits for group in space.groups for bits in group.bits})
    return {bits: legalize(Assignment.uniform(space.layers, bits)) for bits in widths}


def _piece(layers: Sequence[str], executed: Assignment) -> Assignment:
    return Assignment(tuple((layer, executed.precision(layer)) for layer in layers))


def _is_narrower(a: Precision, b: Precision) -> bool:
    """Whether neither format of `a` is wider than that of `b`, so that it loses no less."""
    return _at_most(a.weight, b.weight) and _at_most(a.activation, b.activation)


def _at_most(a: Format, b: Format) -> bool:
    """Fewer bits, or the same codes with scales no finer; of two formats of one width neither is below the other."""
    return a.bits < b.bits or a == b or a == b.plain


def _written(number: float) -> float | str:
    """JSON has no infinity."""
    return number if math.isfinite(number) else str(number)
