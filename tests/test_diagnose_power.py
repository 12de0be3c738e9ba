"""How many samples it takes to see a drop: against the interval that accuracies are reported with."""

import numpy as np
import pytest

from haq.accuracy import Z95, paired_drop_interval
from haq.diagnose.power import check_enough, independent_share, samples_to_see
from haq.errors import InputError


def test_the_number_of_samples_is_the_formulas():
    # Best case, one point: 1.96^2 (0.01 - 0.0001) / 0.0001; of two networks right on 90 %, each by its own luck, 18 %.
    assert samples_to_see(1.0) == int(np.ceil(Z95**2 * 0.0099 / 0.0001)) == 381
    assert independent_share(0.9) == pytest.approx(0.18)
    assert samples_to_see(1.0, 0.18) == int(np.ceil(Z95**2 * (0.18 - 0.0001) / 0.0001))


def test_on_so_many_samples_the_interval_of_the_drop_ends_near_zero():
    n, drop, discordant = samples_to_see(2.0, 0.06), 0.02, 0.06
    lost, gained = round(n * (discordant + drop) / 2), round(n * (discordant - drop) / 2)
    reference, scores = np.ones(n), np.ones(n)
    scores[:lost] = 0.0
    reference[lost : lost + gained] = 0.0
    low = paired_drop_interval(reference, scores).low
    assert abs(low) < 0.15  # points, of a drop of 2


def test_fewer_samples_need_fewer_where_the_drop_is_larger():
    counts = [samples_to_see(drop) for drop in (0.1, 0.3, 1.0, 5.0, 50.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 9 * counts[2]


def test_too_few_samples_are_refused_with_how_many_it_would_take():
    check_enough(1.0, 381, 0.98, where="split 'search'")
    with pytest.raises(InputError, match=r"too few samples to see a drop of 1 points; got 380; expected at least 381"):
        check_enough(1.0, 380, 0.98, where="split 'search'")
    with pytest.raises(InputError, match="not a drop"):
        samples_to_see(0.0)
    with pytest.raises(InputError, match="not a share"):
        samples_to_see(1.0, 1.5)
