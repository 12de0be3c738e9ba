"""What a search says once, at its start and at its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haq.cli.progress import lines
from haq.engine.events import Finished, Started
from haq.history import Summary

STARTED = Started(0, 64, 17, 21, 4**16, 10**8, ("tpu-v4",), {}, 1000)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {},
            "searching 4.29e+09 assignments of 17 free groups (21 layers), 1e+08 of them different on tpu-v4; 64",
        ),
        (
            {"targets": ("tpu-v4", "mobile"), "kept": {"mobile": 0.379}},
            "different on tpu-v4 and mobile; about 37.9 % on mobile keep the cost limits (1,000 drawn at random); 64",
        ),
        ({"kept": {"tpu-v4": 0.0}}, "tpu-v4; about 0 % keep the cost limits (1,000 drawn at random); 64"),
        (
            {"space_size": 256, "effective_size": 256, "drawn": 256, "kept": {"tpu-v4": 0.25}},
            "256 assignments of 17 free groups (21 layers), all different on tpu-v4; 25 % keep the cost limits (all",
        ),
        ({"space_size": 4**1000}, "searching 1e+602 assignments"),  # 1000 log10(4) = 602.06
        ({"found": 3}, "; 64 trials; 3 candidates are there from before"),
    ],
)
def test_the_start_says_how_large_the_space_is_and_which_share_keeps_the_limits(changes, says):
    (line,) = lines(replace(STARTED, **changes))
    assert says in line


def test_the_end_says_which_share_was_infeasible_and_how_many_proposals_were_repeats():
    (line,) = lines(Finished("trials", Summary(80, 16, 70, 70_000, 30.0), 7))
    assert "80 candidates, 16 infeasible by cost alone (20 %), 7 proposals replaced" in line
    (line,) = lines(Finished("timeout", Summary(0, 0, 1, 1, 0.0), 0))
    assert "0 candidates, 0 infeasible by cost alone, 0 proposals replaced" in line
