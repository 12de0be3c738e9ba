"""Times benches on a runtime: ready a few at a time, so that no machine's memory or threads run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from haq.measure.chain import Bench, Case
from haq.measure.timing import Call, Effort, Timing, time_all

AT_A_TIME = 24
"""Benches that are kept ready together; the cases' order keeps those of one comparison together."""

Ready = Callable[[Bench], Call]
"""Makes a bench ready: the call that runs it once."""


def distinct(cases: Sequence[Case]) -> tuple[Bench, ...]:
    """The benches of the cases, each once."""
    return tuple(dict.fromkeys(bench for case in cases for bench in case.benches))


def time_benches(
    benches: Sequence[Bench], ready: Ready, effort: Effort, progress: Callable[[int], object] = lambda done: None
) -> Mapping[Bench, Timing]:
    """Bench -> its timing. progress: is told how many are done."""
    found: dict[Bench, Timing] = {}
    for start in range(0, len(benches), AT_A_TIME):
        group = benches[start : start + AT_A_TIME]
        found |= zip(group, time_all([ready(bench) for bench in group], effort), strict=True)
        progress(len(found))
    return found
