"""Quantile sketches: a distribution in some hundred bytes that can be added to, merged and compared."""

from __future__ import annotations

import base64
import binascii
import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from datasketches import kll_floats_sketch

Floats = NDArray[np.float64]
MOST_BYTES = 1 << 20
"""No sketch of ours is near it; a file with a larger one is not read."""


class Sketch:
    """A KLL sketch of float32 numbers (Karnin, Lang and Liberty, FOCS 2016; Apache DataSketches). It changes.

    Up to k numbers it holds all of them and is exact; beyond it halves what it holds at random, so that the bytes of
    two sketches of one stream differ while their ranks stay within `error`. Its bytes are DataSketches' own format,
    which the Java and C++ libraries read.
    """

    def __init__(self, k: int, inner: kll_floats_sketch | None = None) -> None:
        self._kll = _library().kll_floats_sketch(k) if inner is None else inner

    @classmethod
    def of(cls, values: NDArray[np.float32] | Floats, k: int) -> Sketch:
        """The sketch of finite numbers, (n,)."""
        made = cls(k)
        made.update(values)
        return made

    def update(self, values: NDArray[np.float32] | Floats) -> None:
        """Add finite numbers, (n,)."""
        self._kll.update(np.ascontiguousarray(values, dtype=np.float32))

    def merge(self, other: Sketch) -> None:
        """Add all that the other has seen; the other stays as it is."""
        self._kll.merge(other._kll)

    def copy(self) -> Sketch:
        return Sketch(self.k, copy.copy(self._kll))

    @property
    def k(self) -> int:
        return int(self._kll.k)

    @property
    def count(self) -> int:
        """How many numbers it has seen."""
        return int(self._kll.n)

    @property
    def error(self) -> float:
        """How far any rank may be off, as a share of all numbers, in 99 of 100 sketches; 0 while it holds them all."""
        return float(self._kll.normalized_rank_error(False)) if self._kll.is_estimation_mode() else 0.0

    @property
    def ends(self) -> tuple[float, float]:
        """The least and largest number, exact; NaN where there are none."""
        return float(self._kll.get_min_value()), float(self._kll.get_max_value())

    def quantile(self, rank: float) -> float:
        """The number at a rank between 0 and 1; NaN where there are none."""
        return float(self._kll.get_quantile(rank, True))

    def weighted(self) -> tuple[Floats, Floats]:
        """The numbers that it holds, ascending, and for how many of those seen each stands."""
        held = np.array([(value, weight) for value, weight in self._kll], dtype=np.float64).reshape(-1, 2)
        order = np.argsort(held[:, 0], kind="stable")
        return held[order, 0], held[order, 1]

    def to_text(self) -> str:
        """The sketch in base64."""
        return base64.b64encode(self._kll.serialize()).decode("ascii")

    @classmethod
    def from_text(cls, text: str, where: str) -> Sketch:
        """The inverse of `to_text`; raises InputError on anything else."""
        try:
            raw = base64.b64decode(text, validate=True)
            if len(raw) > MOST_BYTES:
                raise ValueError(f"{len(raw)} bytes")
            inner = _library().kll_floats_sketch.deserialize(raw)
        except (binascii.Error, ValueError, IndexError, RuntimeError, MemoryError) as error:
            raise InputError(
                "no quantile sketch", where=where, got=str(error)[:80], expected="base64 of a KLL floats sketch"
            ) from None
        return cls(int(inner.k), inner)


def distance(one: Sketch, other: Sketch, shift: float = 0.0, tolerance: float = 0.0) -> float:
    """The largest difference of two distribution functions, 0 to 1 (Kolmogorov-Smirnov), as the sketches tell it.

    shift: is added to the other's numbers. tolerance: numbers that lie no further apart count as equal, so that the
    distance is at most that without it. 0 where either is empty.
    """
    (mine, my_weights), (theirs, their_weights) = one.weighted(), other.weighted()
    if not len(mine) or not len(theirs):
        return 0.0
    theirs = theirs + shift
    # A difference of two steps is largest where the one that is ahead has just risen.
    ahead = _ranks(mine, my_weights, mine) - _ranks(theirs, their_weights, mine + tolerance)
    behind = _ranks(theirs, their_weights, theirs) - _ranks(mine, my_weights, theirs + tolerance)
    return max(0.0, float(ahead.max()), float(behind.max()))


def _ranks(values: Floats, weights: Floats, points: Floats) -> Floats:
    """The share of the weight at or below each point."""
    below = np.concatenate([[0.0], np.cumsum(weights)])
    ranks: Floats = below[np.searchsorted(values, points, side="right")] / below[-1]
    return ranks


def is_available() -> bool:
    """Whether the library of sketches is installed."""
    try:
        _library()
    except MissingExtra:
        return False
    return True


def _library() -> Any:
    try:
        import datasketches
    except ModuleNotFoundError:
        raise MissingExtra("datasketches", "drift") from None
    return datasketches
