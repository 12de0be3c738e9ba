"""Sketches of distributions: exact while small, within the library's bound beyond, the same merged as fed at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import InputError
from haq.sketch import Sketch, distance

floats = st.floats(-100, 100, width=32)
samples = st.lists(floats, min_size=1, max_size=60).map(np.array)


def normal(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@given(samples, samples)
def test_the_distance_is_the_largest_difference_of_shares_at_any_number(one: np.ndarray, other: np.ndarray) -> None:
    expected = max(abs(np.mean(one <= x) - np.mean(other <= x)) for x in (*one, *other))
    assert distance(Sketch.of(one, 128), Sketch.of(other, 128)) == pytest.approx(expected, abs=1e-12)


def test_a_shift_is_added_to_the_other() -> None:
    one, other = Sketch.of(np.array([1.0, 2.0]), 8), Sketch.of(np.array([0.0, 1.0]), 8)
    assert distance(one, other) == 0.5
    assert distance(one, other, 1.0) == 0.0
    assert distance(one, Sketch(8)) == 0.0


@given(samples, samples, st.floats(0, 50))
def test_within_the_tolerance_numbers_are_equal(one: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    found = distance(Sketch.of(one, 128), Sketch.of(other, 128), tolerance=tolerance)
    ahead = max(np.mean(one <= x) - np.mean(other <= x + tolerance) for x in one)
    behind = max(np.mean(other <= x) - np.mean(one <= x + tolerance) for x in other)
    assert found == pytest.approx(max(0.0, ahead, behind), abs=1e-12)
    assert found <= distance(Sketch.of(one, 128), Sketch.of(other, 128))


@given(samples, samples)
def test_merged_is_the_union_while_the_sketch_holds_everything(one: np.ndarray, other: np.ndarray) -> None:
    merged = Sketch.of(one, 128)
    merged.merge(Sketch.of(other, 128))
    union = np.sort(np.concatenate([one, other]).astype(np.float32))
    assert merged.error == 0.0
    assert np.array_equal(merged.weighted()[0], union)
    assert (merged.count, *merged.ends) == (len(union), union[0], union[-1])


@pytest.mark.parametrize("merge", [False, True])
def test_large_streams_keep_the_librarys_bound_on_ranks(merge: bool) -> None:
    # The bound holds for 99 of 100 sketches: of 30 not more than 3 fail but once in 4,000 runs (binomial).
    failures = 0
    for seed in range(30):
        stream = normal(seed, 6000)
        sketch = Sketch(64)
        for part in np.split(stream, 4):
            if merge:
                sketch.merge(Sketch.of(part, 64))
            else:
                sketch.update(part)
        assert sketch.count == 6000
        assert 0.03 < sketch.error < 0.05
        ranks = np.linspace(0.02, 0.98, 49)
        true = [np.mean(stream <= sketch.quantile(rank)) for rank in ranks]
        failures += bool(np.max(np.abs(true - ranks)) > sketch.error)
    assert failures <= 3


def test_text_brings_the_same_sketch_back_and_anything_else_is_refused() -> None:
    sketch = Sketch.of(normal(0, 128), 128)
    again = Sketch.from_text(sketch.to_text(), "here")
    assert (again.k, again.count, again.ends) == (128, 128, sketch.ends)
    assert distance(sketch, again) == 0.0
    assert len(sketch.to_text()) < 800
    for text in ("", "no base64!", "AAAA", sketch.to_text()[:40]):
        with pytest.raises(InputError, match="here: no quantile sketch"):
            Sketch.from_text(text, "here")


def test_a_copy_goes_its_own_way() -> None:
    sketch = Sketch.of(np.array([1.0]), 8)
    copied = sketch.copy()
    copied.update(np.array([2.0]))
    assert (sketch.count, copied.count) == (1, 2)
