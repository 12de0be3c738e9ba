"""Dominance and hypervolume against brute force, against Optuna and against arithmetic."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from haq.pareto import hypervolume, non_dominated

small_tables = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 5), min_size=k, max_size=k), min_size=1, max_size=12)
)


def beats(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def unit_cubes(rows, side):
    """Count the unit cells of a grid of `side` that some row dominates: integer losses, so the volume is the count."""
    cells = itertools.product(range(side), repeat=len(rows[0]))
    return sum(any(all(x <= c for x, c in zip(row, cell, strict=True)) for row in rows) for cell in cells)


def test_a_point_that_is_worse_everywhere_is_dominated():
    assert non_dominated([[1, 2], [2, 1], [2, 2], [3, 3]]).tolist() == [True, True, False, False]


def test_of_identical_rows_only_the_first_is_kept():
    assert non_dominated([[2, 2], [1, 3], [2, 2]]).tolist() == [True, True, False]


def test_an_empty_table_has_an_empty_front():
    assert non_dominated(np.empty((0, 3))).tolist() == []
    assert hypervolume(np.empty((0, 3)), (1, 1, 1)) == 0


def test_two_rectangles_that_overlap_are_counted_once():
    # (1, 3) covers 3 x 1, (2, 1) covers 2 x 3, their overlap is 2 x 1: 3 + 6 - 2 below (4, 4).
    assert hypervolume([[1, 3], [2, 1]], (4, 4)) == 7


def test_rows_outside_the_reference_add_nothing():
    assert hypervolume([[1, 5], [2, 2]], (4, 4)) == 4
    assert hypervolume([[4, 0]], (4, 4)) == 0


def test_nan_is_a_programming_error():
    with pytest.raises(AssertionError, match="NaN"):
        non_dominated([[1.0, float("nan")]])


@given(small_tables)
def test_the_front_agrees_with_the_definition_applied_to_every_pair(rows):
    expected = [not any(beats(other, row) for other in rows) and row not in rows[:i] for i, row in enumerate(rows)]
    assert non_dominated(rows).tolist() == expected


@given(small_tables)
def test_hypervolume_counts_the_dominated_cells_of_an_integer_grid(rows):
    assert hypervolume(rows, [5] * len(rows[0])) == pytest.approx(unit_cubes(rows, 5))


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 10**6))
def test_hypervolume_agrees_with_optunas_independent_algorithm(k, n, seed):
    rows = np.random.default_rng(seed).random((n, k))
    assert hypervolume(rows, [1.0] * k) == pytest.approx(compute_hypervolume(rows, np.ones(k)))


@given(small_tables, st.randoms())
def test_the_order_of_the_rows_does_not_change_the_hypervolume(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert hypervolume(shuffled, [6] * len(rows[0])) == hypervolume(rows, [6] * len(rows[0]))
