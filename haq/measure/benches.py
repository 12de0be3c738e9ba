"""Times benches on a runtime, in sweeps over all of them, a few ready at a time so that memory does not run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from haq.measure.chain import Bench
from haq.measure.timing import Call, Effort, Timing, sample_all, summarize

AT_A_TIME = 24
"""Benches that are kept ready together; the cases' order keeps those of one comparison together."""

SWEEPS = 2
"""Passes over everything: what another program disturbs for a minute is timed again a minute later."""

Ready = Callable[[Bench], Call]
"""Makes a bench ready: the call that runs it once."""


def time_benches(
    benches: Sequence[Bench], ready: Ready, effort: Effort, progress: Callable[[int, int], object]
) -> Mapping[Bench, Timing]:
    """Bench -> its timing. effort: of one sweep. progress: is told how many are done, of how many."""
    rounds: dict[Bench, list[list[float]]] = {bench: [] for bench in benches}
    groups = [benches[start : start + AT_A_TIME] for start in range(0, len(benches), AT_A_TIME)]
    done = 0
    for group in groups * SWEEPS:
        for bench, found in zip(group, sample_all([ready(bench) for bench in group], effort), strict=True):
            rounds[bench] += found
        done += len(group)
        progress(done, SWEEPS * len(benches))
    return {bench: summarize(found) for bench, found in rounds.items()}
