"""Writes sums over groups and pairs of groups as rows over choices of 0 or 1, for a solver of integer programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from haq.terms import Floats, Pair, Terms

Columns = NDArray[np.intp]
Available = tuple[Columns, ...]
"""Per group, the levels that may be chosen, ascending."""

NONE = np.zeros(0)

ROUNDING = 1e-12
"""Of a pair's largest entry: what is smaller is left over from sums in another order, and nothing of the pair's own."""


@dataclass(frozen=True)
class Program:
    """Several sums over one set of columns: first `choices`, each 0 or 1, then columns of pairs in [0, 1].

    choices: (group, level) of each; of every group exactly one is 1. rows: (sums, columns). constants: (sums,), such
    that no entry of a choice is negative. rules: (rules, columns) what ties the columns together, and between which
    `bounds` (rules, 2) each of their sums must lie.
    """

    choices: NDArray[np.intp]
    rows: Floats
    constants: Floats
    rules: csr_array
    bounds: Floats

    def levels(self, solution: Floats) -> tuple[int, ...]:
        """The level of each group in a solution, one value per column."""
        taken = self.choices[solution[: len(self.choices)] > 0.5]
        return tuple(taken[:, 1].tolist())


def linearize(available: Available, sums: Sequence[Terms]) -> Program:
    """The sums as rows; exact where every choice is 0 or 1, and in between as tight as pairs by themselves can be.

    Nothing that is NaN in a sum is ever chosen. What of a pair is a sum of two own terms goes there, levels that do not
    differ in the rest are one class, and two classes have a column that is 1 where both are taken. Columns and rules
    are the local marginal polytope (Wainwright and Jordan 2008, section 4.1) without the columns of the first class,
    which the others determine.
    """
    starts = np.cumsum([0, *(len(levels) for levels in available)])
    own = np.array([np.concatenate([NONE, *(t.unary[g][levels] for g, levels in enumerate(available))]) for t in sums])
    own = own.reshape(len(sums), int(starts[-1]))
    draft = _Draft(own, np.split(np.arange(int(starts[-1])), starts[1:-1]))
    for members in draft.members:
        draft.rule([(column, 1.0) for column in members], 1.0, 1.0)
    for column in np.flatnonzero(np.isnan(own).any(axis=0)).tolist():
        draft.rule([(column, 1.0)], 0.0, 0.0)
    own[np.isnan(own)] = 0.0
    paired = np.array([i for i, t in enumerate(sums) if t.pairs], dtype=np.intp)
    for pair in dict.fromkeys(pair for i in paired for pair in sums[i].pairs):
        draft.add_pair(pair, paired, _tables([sums[i] for i in paired], pair, available))
    constants = np.array([t.constant for t in sums])
    for members in draft.members:
        least = own[:, members].min(axis=1)
        own[:, members] -= least[:, None]
        constants = constants + least
    rows = np.concatenate([own, np.array(draft.columns).reshape(-1, len(sums)).T], axis=1)
    choices = np.array([(g, level) for g, levels in enumerate(available) for level in levels], dtype=np.intp)
    bounds = np.array(draft.bounds, dtype=np.float64).reshape(-1, 2)
    return Program(choices.reshape(-1, 2), rows, constants, draft.matrix(rows.shape[1]), bounds)


def _tables(sums: Sequence[Terms], pair: Pair, available: Available) -> Floats:
    """(sums, levels of a, levels of b) what the pair adds, where both are available."""
    a, b = (available[g] for g in pair)
    nothing = np.zeros((len(a), len(b)))
    return np.array([t.pairs[pair][np.ix_(a, b)] if pair in t.pairs else nothing for t in sums])


def _joint(tables: Floats) -> Floats:
    """What remains of (sums, levels, levels) when the first row and the first column are taken out everywhere."""
    rest = tables - tables[:, :, :1] - tables[:, :1, :] + tables[:, :1, :1]
    largest = np.abs(tables).max(axis=(1, 2), keepdims=True)
    rest[np.abs(rest) <= ROUNDING * largest] = 0.0
    return np.asarray(rest, dtype=np.float64)


def _classes(joint: Floats) -> tuple[tuple[int, ...], ...]:
    """Levels along the second axis that are alike, those like the first one, where all is zero, first."""
    largest = np.maximum(np.abs(joint).max(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    # Alike but for rounding; adding zero turns -0 into 0.
    compared = np.round(joint / largest / ROUNDING) + 0.0
    found: dict[bytes, list[int]] = {}
    for level in range(joint.shape[1]):
        found.setdefault(compared[:, level].tobytes(), []).append(level)
    return tuple(map(tuple, found.values()))


@dataclass
class _Draft:
    """A program while pairs are added, hence not frozen.

    own: (sums, choices), changed in place. members: the columns of each group. columns: (sums,) each, of pairs.
    entries: (rule, column, factor).
    """

    own: Floats
    members: list[Columns]
    columns: list[Floats] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)

    def rule(self, entries: Iterable[tuple[int | np.integer, float]], least: float, most: float) -> None:
        self.entries.extend((len(self.bounds), int(column), factor) for column, factor in entries)
        self.bounds.append((least, most))

    def add_pair(self, pair: Pair, paired: Columns, tables: Floats) -> None:
        """paired: the sums that may have the pair; tables: (paired, levels, levels)."""
        one, other = (self.members[group] for group in pair)
        for a, b in np.argwhere(np.isnan(tables).any(axis=0)):
            self.rule([(one[a], 1.0), (other[b], 1.0)], -np.inf, 1.0)
        known = np.nan_to_num(tables)
        self.own[np.ix_(paired, one)] += known[:, :, 0]
        self.own[np.ix_(paired, other)] += known[:, 0, :] - known[:, 0, :1]
        joint = _joint(known)
        (_, *classes), (_, *other_classes) = _classes(joint), _classes(joint.swapaxes(1, 2))
        if not classes:
            return
        first = self.own.shape[1] + len(self.columns)
        both = first + np.arange(len(classes) * len(other_classes)).reshape(len(classes), -1)
        for a in classes:
            for b in other_classes:
                entry = np.zeros(len(self.own))
                entry[paired] = joint[:, a[0], b[0]]
                self.columns.append(entry)
        either = [one[list(a)] for a in classes], [other[list(b)] for b in other_classes]
        for side, lines in zip(either, (both, both.T), strict=True):
            for choices, line in zip(side, lines, strict=True):
                self.rule([*((c, 1.0) for c in line), *((c, -1.0) for c in choices)], -np.inf, 0.0)
        outside = [(c, -1.0) for side in either for choices in side for c in choices]
        self.rule([*outside, *((c, 1.0) for c in both.ravel())], -1.0, np.inf)

    def matrix(self, width: int) -> csr_array:
        rules, columns, factors = np.array(self.entries, dtype=np.float64).reshape(-1, 3).T
        places = rules.astype(np.intp), columns.astype(np.intp)
        return coo_array((factors, places), shape=(len(self.bounds), width)).tocsr()
