"""What measurements on any target say about one target: a surrogate over executed pieces instead of bit-widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Measurement
from haq.precision import Assignment, Precision
from haq.sensitivity import Legalize, Sensitivity, quantized_part
from haq.space import SearchSpace
from haq.surrogate import Surrogate, finite, fit, observed, with_slope_error

Floats = NDArray[np.float64]
Points = NDArray[np.intp]
Pieces = dict[frozenset[tuple[str, Precision]], tuple[int, Assignment]]
"""What one group's pieces execute -> the column and the piece."""


@dataclass(frozen=True)
class Pooled:
    """Predictions on one target. A column of the surrogate's table is one piece that any target executes.

    columns: (groups, levels) the column of what the target executes at each level, -1 where a group has no such level.
    known, is_bound: (groups, levels) whether its loss is known and finite, and only from a narrower piece. measured:
    (n, groups) the columns of what was measured.
    """

    surrogate: Surrogate
    columns: Points
    known: NDArray[np.bool_]
    is_bound: NDArray[np.bool_]
    measured: Points

    @property
    def losses(self) -> Floats:
        """(groups, levels) the losses as measurements have them, NaN where they are unknown or infinite."""
        corrected = self.surrogate.corrected[np.arange(len(self.columns))[:, None], self.columns]
        return np.where(self.known, corrected, np.nan)

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """((n,), (n,)) mean and standard deviation of the drop in points; points: (n, groups) levels."""
        return with_slope_error(self.surrogate, self.columns[np.arange(len(self.columns)), points])

    def narrowest(self, points: Points) -> Points:
        """(n, groups) the lowest levels that the target executes like these."""
        lowest: Points = np.argmax(self.columns[:, None, :] == self.columns[:, :, None], axis=2)
        return lowest[np.arange(len(lowest)), points]

    def executed_here(self) -> Points:
        """(k, groups) levels at which the target executes exactly what was measured, each of them once."""
        same = self.measured[:, :, None] == self.columns
        return np.unique(same.argmax(axis=2)[same.any(axis=2).all(axis=1)], axis=0)


def pool(
    space: SearchSpace,
    sensitivity: Sensitivity,
    legalize: Legalize,
    measured: Sequence[tuple[Assignment, Measurement]],
) -> Pooled:
    """Fit one surrogate to what was executed and measured, on whichever target, and see it as `legalize` does.

    A piece loses the same whoever executes it, so that scale, slope and the correction of every piece are shared.
    """
    groups, width = len(space.groups), max(len(group.bits) for group in space.groups)
    pieces: list[Pieces] = [{} for _ in space.groups]
    columns = np.full((groups, width), -1, dtype=np.intp)
    uniform = {bits: legalize(Assignment.uniform(space.layers, bits)) for group in space.groups for bits in group.bits}
    for row, group in enumerate(space.groups):
        for level, bits in enumerate(group.bits):
            columns[row, level] = _column(pieces[row], group.layers, uniform[bits])
    rows = np.array(
        [
            [_column(found, group.layers, executed) for found, group in zip(pieces, space.groups, strict=True)]
            for executed, _ in measured
        ],
        dtype=np.intp,
    ).reshape(-1, groups)
    losses = np.full((groups, max(map(len, pieces))), np.nan)
    is_bound = np.zeros_like(columns, dtype=bool)
    for row, found in enumerate(pieces):
        of_piece = [sensitivity.of(piece) for _, piece in found.values()]
        losses[row, : len(found)] = [np.nan if value is None else value for value in of_piece]
        bounds = np.array([sensitivity.is_bound(piece) for _, piece in found.values()])
        is_bound[row] = bounds[columns[row]] & (columns[row] >= 0)
    known = np.isfinite(losses)
    usable = known[np.arange(groups), rows].all(axis=1)
    taken = [measurement for (_, measurement), kept in zip(measured, usable, strict=True) if kept]
    surrogate = fit(finite(losses), observed(rows[usable].tolist(), taken, sensitivity.measure, groups))
    return Pooled(surrogate, columns, known[np.arange(groups)[:, None], columns] & (columns >= 0), is_bound, rows)


def _column(pieces: Pieces, layers: Sequence[str], executed: Assignment) -> int:
    """The column of what is executed on these layers; it is added to the pieces when it is new."""
    piece = Assignment(tuple((layer, executed[layer]) for layer in layers))
    return pieces.setdefault(quantized_part(piece), (len(pieces), piece))[0]
