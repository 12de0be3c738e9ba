"""The truth about a small space: every assignment measured, sample by sample, and a measure that looks it up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Reading, Scores
from haq.engine.problem import Problem, Target, unquantized
from haq.history import SEARCH
from haq.precision import Assignment
from haq.racing import Look, Watch
from haq.space import SearchSpace

SAVED_EVERY = 128
"""Assignments between two saves of what is measured so far."""


@dataclass(frozen=True, eq=False)
class Table:
    """Which samples each assignment gets right. right: (assignments, samples), as `all_levels` orders them.

    made_of: what the answers depend on, as JSON text.
    """

    right: NDArray[np.bool_]
    made_of: str

    def save(self, path: Path) -> None:
        """Write it whole or not at all: bits that differ from the last assignment's (FP32), which compress well."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        fp32 = self.right[-1]
        np.savez_compressed(
            part, changed=np.packbits(self.right ^ fp32, axis=1), fp32=fp32, made_of=np.array(self.made_of)
        )
        os.replace(part, path)


def read_table(path: Path) -> Table:
    """The table in a file."""
    with np.load(path) as raw:
        fp32 = raw["fp32"]
        changed = np.unpackbits(raw["changed"], axis=1, count=len(fp32)).astype(bool)
        return Table(changed ^ fp32, str(raw["made_of"]))


def all_levels(space: SearchSpace) -> NDArray[np.intp]:
    """(assignments, groups) every point of the space, the last group changing fastest; the widest is last."""
    return np.array(list(np.ndindex(*(len(group.bits) for group in space.groups))), dtype=np.intp)


def table_of(problem: Problem, kept: Path, under_way: Path) -> Table:
    """The table in `kept` where it is of this very network, or else one that is measured now and kept there.

    under_way: where a measurement that is stopped goes on from.
    """
    made_of = _made_of(problem)
    if kept.is_file():
        table = read_table(kept)
        if table.made_of == made_of:
            return table
        print(f"{kept.name} is of other weights or another quantizer: measuring anew", flush=True)
    table = _measured(problem, made_of, under_way)
    table.save(kept)
    under_way.unlink(missing_ok=True)
    return table


def losses(problem: Problem, table: Table) -> NDArray[np.float64]:
    """(assignments, 3) bytes, ms and points of drop of every assignment, on the problem's one target."""
    target = problem.targets[0]
    assert target.population is not None, "targets of profiles price populations"
    costs = target.population(problem.space.layer_levels(all_levels(problem.space)))
    drops = 100 * (table.right[-1].mean() - table.right.mean(axis=1))
    stacked: NDArray[np.float64] = np.stack([costs["size_bytes"], costs["latency_ms"], drops], axis=1)
    return stacked


class Lookup:
    """A measure and a race that answer from the table what the network would."""

    def __init__(self, problem: Problem, table: Table) -> None:
        """Lets the network race once, to see in which order its samples are looked at."""
        self._right, self._looks = table.right, list[Look]()
        self._row: Mapping[str, int] = {
            _executed(problem.targets[0], problem.space, levels).signature: row
            for row, levels in enumerate(all_levels(problem.space).tolist())
        }
        if problem.race is not None:
            problem.race(unquantized(problem.workload), self._never)

    def _never(self, look: Look) -> bool:
        self._looks.append(look)
        return False

    def measure(self, executed: Assignment, split: str) -> Scores:
        """The scores of all samples."""
        assert split == SEARCH, "the table is of the search split"
        scores: Scores = self._right[self._row[executed.signature]].astype(np.float64)
        return scores

    def race(self, executed: Assignment, watch: Watch) -> Reading:
        """The reading that `watch` may stop early, look by look as the network's own race."""
        scores = self.measure(executed, SEARCH)
        for look in self._looks:
            found = replace(look, scores=scores[look.samples])
            if watch(found):
                return Reading(found.scores, look=found)
        return Reading(scores)


def _measured(problem: Problem, made_of: str, under_way: Path) -> Table:
    points = all_levels(problem.space)
    rows: list[NDArray[np.bool_]] = []
    if under_way.is_file() and (found := read_table(under_way)).made_of == made_of:
        # The last row of what is under way is FP32, there to compress the others.
        rows = list(found.right[:-1])
    started, before = time.perf_counter(), len(rows)
    fp32 = _right(problem, points[-1].tolist())
    for levels in points[before:].tolist():
        rows.append(_right(problem, levels))
        if len(rows) % SAVED_EVERY == 0:
            Table(np.array([*rows, fp32]), made_of).save(under_way)
            each = (time.perf_counter() - started) / (len(rows) - before)
            left = each * (len(points) - len(rows))
            print(f"{len(rows):,} of {len(points):,}, {1000 * each:.0f} ms each, {left:.0f} s left", flush=True)
    return Table(np.array(rows), made_of)


def _right(problem: Problem, levels: list[int]) -> NDArray[np.bool_]:
    reading = problem.measure(_executed(problem.targets[0], problem.space, levels), SEARCH)
    return np.asarray(reading.scores, dtype=bool)  # type: ignore[union-attr]


def _executed(target: Target, space: SearchSpace, levels: list[int]) -> Assignment:
    return target.legalize(space.assignment(levels))[0]


def _made_of(problem: Problem) -> str:
    """Weights, data and quantizer; the cost model has no part in which samples are right."""
    about = {key: problem.provenance[key] for key in ("weights_hash", "data_hash", "metric")}
    groups = {group.name: list(group.bits) for group in problem.space.groups}
    return json.dumps({**about, "accuracy": problem.spec["accuracy"], "groups": groups}, sort_keys=True)
