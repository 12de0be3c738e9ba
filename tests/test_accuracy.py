"""Measurements and their intervals against scipy and published worked examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from haq.accuracy import Measurement, compare, mean_interval, paired_drop_interval
from haq.errors import InputError


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_interval_of_right_and_wrong_is_scipys_wilson_interval(right, wrong):
    if right + wrong == 0:
        return
    scores = np.array([1.0] * right + [0.0] * wrong)
    expected = stats.binomtest(right, right + wrong).proportion_ci(0.95, method="wilson")
    assert (mean_interval(scores).low, mean_interval(scores).high) == pytest.approx((expected.low, expected.high))


def test_a_paired_interval_is_the_adjusted_wald_interval_worked_by_hand():
    # 100 samples, 8 lost and 2 gained: (8.5 - 2.5) / 102 -+ 1.96 sqrt(11 - 36 / 102) / 102
    reference, scores = np.ones(100), np.ones(100)
    scores[:8] = 0
    reference[8:10] = 0
    interval = paired_drop_interval(reference, scores)
    middle, half = 600 / 102, 100 * 1.959964 * np.sqrt(11 - 36 / 102) / 102
    assert (interval.low, interval.high) == pytest.approx((middle - half, middle + half), rel=1e-6)


def test_no_changed_sample_still_leaves_doubt():
    interval = paired_drop_interval(np.ones(1000), np.ones(1000))
    assert interval.low < 0 < interval.high
    assert interval.high == pytest.approx(100 * 1.959964 / 1002, rel=1e-6)


def test_scores_between_zero_and_one_take_the_normal_interval():
    scores = np.array([0.2, 0.4, 0.6, 0.8])
    half = 1.959964 * np.std(scores, ddof=1) / 2
    assert mean_interval(scores).low == pytest.approx(0.5 - half, rel=1e-6)


def test_a_drop_is_in_points_of_the_reference():
    measured = compare(np.array([1.0, 1, 1, 1]), np.array([1.0, 0, 1, 1]), "search")
    assert (measured.accuracy, measured.drop_points, measured.samples) == (0.75, 25.0, 4)


def test_one_number_has_no_interval():
    measured = compare(0.90, 0.88, "search")
    assert measured.drop_points == pytest.approx(2.0)
    assert measured.drop_interval is None
    assert "drop_interval" not in measured.to_json()


def test_a_measurement_survives_json():
    measured = compare(np.array([1.0, 1, 0]), np.array([1.0, 0, 0]), "validation")
    assert Measurement.from_json(measured.to_json()) == measured
    assert Measurement.from_json(compare(1.0, 0.5, "search").to_json()) == compare(1.0, 0.5, "search")


@pytest.mark.parametrize(
    ("reference", "result", "match"),
    [
        (np.ones(3), np.array([1.0, np.nan, 0]), r"split 'search': the candidate's accuracy is not finite; got nan"),
        (0.5, float("inf"), "candidate's accuracy is not finite; got inf"),
        (float("nan"), 0.5, "FP32 model's accuracy is not finite"),
        (np.ones(3), np.ones(2), r"changed shape; got \(2,\); expected \(3,\)"),
        (np.ones(0), np.ones(0), "no samples"),
        (np.ones(3), 0.5, "array once and a number once"),
    ],
)
def test_unusable_results_are_refused(reference, result, match):
    with pytest.raises(InputError, match=match):
        compare(reference, result, "search")
