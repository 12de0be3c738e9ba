"""Repeats are replaced by something new that is near, until the space holds nothing new."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from search_fakes import workload

from haq.engine.proposals import replace_repeat
from haq.space import build_space

SPACE = build_space(workload())
EVERYTHING = list(itertools.product(range(4), repeat=4))


def test_new_levels_are_taken_as_they_are():
    assert replace_repeat(SPACE, (0, 1, 2, 3), lambda levels: True, 0) == (0, 1, 2, 3)


@given(st.sampled_from(EVERYTHING), st.integers(0, 2**32))
def test_a_repeat_becomes_a_neighbour_that_differs_in_one_group(levels, seed):
    other = replace_repeat(SPACE, levels, lambda candidate: candidate != levels, seed)
    assert sum(a != b for a, b in zip(levels, other, strict=True)) == 1
    assert other == replace_repeat(SPACE, levels, lambda candidate: candidate != levels, seed)


@given(st.sampled_from(EVERYTHING), st.sampled_from(EVERYTHING), st.integers(0, 2**32))
def test_the_last_new_point_of_a_small_space_is_always_found(levels, last, seed):
    assert replace_repeat(SPACE, levels, lambda candidate: candidate == last, seed) == last


def test_a_space_with_nothing_new_gives_nothing():
    assert replace_repeat(SPACE, (0, 0, 0, 0), lambda levels: False, 0) is None
    huge = build_space(workload(tuple(f"l{i}" for i in range(20))))
    assert replace_repeat(huge, (0,) * 20, lambda levels: False, 0) is None
    pinned = build_space(workload(), pins={"*": 8})
    assert replace_repeat(pinned, (0,) * 4, lambda levels: False, 0) is None
