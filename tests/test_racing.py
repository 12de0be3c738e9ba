"""Bounds on the drop of a whole split from a part of it: coverage over looks, against brute force and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from haq.racing import SHARES, changes, drop_bounds, hardest_first, plan


def bounds_at_every_look(fp32, scores, steps, *, is_continuous=False, is_minimized=False):
    looks = [
        steps.look(k, scores[steps.order[:end]], is_continuous=is_continuous) for k, end in enumerate(steps.ends[:-1])
    ]
    return [drop_bounds(fp32, look, is_minimized=is_minimized) for look in looks]


@given(st.integers(1, 40), st.data())
def test_changes_are_the_numbers_that_a_hypergeometric_test_does_not_reject(size, data):
    drawn = data.draw(st.integers(0, size))
    seen = data.draw(st.integers(0, drawn))
    possible = range(seen, size - (drawn - seen) + 1)
    at_most = [k for k in possible if hypergeom.cdf(seen, size, k, drawn) >= 0.01]
    at_least = [k for k in possible if hypergeom.sf(seen - 1, size, k, drawn) >= 0.01]
    assert changes(seen, drawn, size, 0.01) == (min(at_least), max(at_most))


def test_changes_are_known_when_all_were_drawn_and_anything_when_none_was():
    assert changes(3, 10, 10, 0.01) == (3, 3)
    assert changes(0, 0, 10, 0.01) == (0, 10)


@given(st.integers(1, 700), st.booleans())
def test_a_plan_measures_every_sample_once_and_hard_ones_before_easier_ones(count, by_hardness):
    rng = np.random.default_rng(count)
    order = rng.permutation(count) if by_hardness else None
    steps = plan(count, order)
    assert sorted(np.concatenate(steps.parts).tolist()) == list(range(count))
    assert len(steps.ends) <= len(SHARES) + 1
    for number, end in enumerate(steps.ends[:-1]):
        look = steps.look(number, np.zeros(end), is_continuous=False)
        assert look.weights.sum() == pytest.approx(count) or look.is_hard.all()
        if order is None or number == 0:
            assert not look.is_hard.any()
        else:
            hard = set(look.samples[look.is_hard].tolist())
            assert hard == set(order[: len(hard)].tolist())


def test_hard_samples_are_those_that_fp32_gets_wrong_and_then_those_with_a_small_margin():
    right = np.array([True, False, True, False, True])
    assert hardest_first(right, np.array([3.0, 2.0, np.nan, 1.0, 0.5])).tolist() == [3, 1, 2, 4, 0]


def test_the_drop_so_far_is_a_bound_without_chance_once_all_wrong_samples_are_measured():
    # 320 samples, 20 of them wrong; after an eighth, 40, the 20 drawn ones and 20 hard ones are known.
    right, margins = np.arange(320) >= 20, np.arange(320.0)
    steps = plan(320, hardest_first(right, margins))
    fp32 = right.astype(float)
    scores = fp32.copy()
    scores[[20, 21, 22, 23]] = 0.0  # the four smallest margins are lost
    scores[0] = 1.0  # one is gained
    *_, last = bounds_at_every_look(fp32, scores, steps)
    assert last.low == pytest.approx(100 * 3 / 320)
    assert last.estimate == pytest.approx(100 * 3 / 320)


def population(rng, count, accuracy, noise, link):
    """(right, margins, FP32's scores, a candidate's): answers with a small margin change more where `link` is 1."""
    margins = rng.gamma(2.0, 2.0, count)
    right = rng.random(count) < accuracy
    threshold = np.where(rng.random(count) < link, margins, rng.permutation(margins))
    changed = rng.normal(0, noise, count) + noise / 2 > threshold
    return right, margins, right.astype(float), np.where(changed & (right | (rng.random(count) < 0.5)), ~right, right)


@pytest.mark.parametrize("link", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("count", "accuracy", "noise"), [(1000, 0.98, 1.0), (512, 0.87, 2.0), (512, 0.6, 6.0)])
def test_intervals_hold_the_drop_at_all_looks_together_in_95_of_100_populations(count, accuracy, noise, link):
    rng, missed, runs = np.random.default_rng(count), 0, 200
    for _ in range(runs):
        right, margins, fp32, scores = population(rng, count, accuracy, noise, link)
        drop = 100 * np.mean(fp32 - scores)
        found = bounds_at_every_look(fp32, scores.astype(float), plan(count, hardest_first(right, margins)))
        missed += not all(b.low - 1e-9 <= drop <= b.high + 1e-9 for b in found)
        assert all(b.low - 1e-9 <= b.estimate <= b.high + 1e-9 for b in found)
    assert missed / runs <= 0.05


def test_the_first_estimates_are_right_on_average():
    rng, errors = np.random.default_rng(1), []
    for _ in range(300):
        right, margins, fp32, scores = population(rng, 512, 0.87, 2.0, 0.5)
        found = bounds_at_every_look(fp32, scores.astype(float), plan(512, hardest_first(right, margins)))
        errors.append([b.estimate - 100 * np.mean(fp32 - scores) for b in found])
    spread = np.std(errors, axis=0) / np.sqrt(len(errors))
    assert (np.abs(np.mean(errors, axis=0)) <= 4 * spread + 1e-9).all()


@pytest.mark.parametrize("is_minimized", [True, False])
def test_normal_intervals_of_continuous_scores_hold_their_mean_at_all_looks_together(is_minimized):
    rng, missed, runs = np.random.default_rng(2), 0, 200
    for _ in range(runs):
        fp32, scores = rng.gamma(1.0, 0.3, (2, 1000))
        drop = 100 * np.mean(scores - fp32) * (1 if is_minimized else -1)
        found = bounds_at_every_look(fp32, scores, plan(1000, None), is_continuous=True, is_minimized=is_minimized)
        missed += not all(b.low <= drop <= b.high for b in found)
    assert missed / runs <= 0.05


def test_drops_of_a_few_samples_are_told_apart_after_a_fraction_where_hard_samples_come_first():
    """What racing rests on: the drops of good candidates differ by less than any random part of a split can tell."""
    rng, shares = np.random.default_rng(3), {"hard first": [], "random": []}
    for _ in range(100):
        right, margins, fp32, scores = population(rng, 1000, 0.95, 0.7, 1.0)
        bar = 100 * np.mean(fp32 - scores) - 0.2  # a candidate that loses two samples less is known
        for name, order in (("hard first", hardest_first(right, margins)), ("random", None)):
            steps = plan(1000, order)
            found = bounds_at_every_look(fp32, scores.astype(float), steps)
            ends = [end for end, b in zip(steps.ends, found, strict=False) if b.low > bar]
            shares[name].append(min(ends, default=1000) / 1000)
    assert np.mean(shares["hard first"]) < 0.4
    assert np.mean(shares["random"]) > 0.95
