"""Runs a search: checks the limits, evaluates candidates until the end, validates the front, writes the files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from haq.engine.events import BaselineMeasured, CandidateDone, Finished, Notice, Progress, Started, Validated, silent
from haq.engine.feasibility import drawn_points, kept_shares, reachable_levels
from haq.engine.mirror import Mirror, storage_url
from haq.engine.problem import Problem, SearchOptions, baseline_costs, effective_size
from haq.engine.samplers import GUIDED, SAMPLERS
from haq.engine.seeds import Seed, seeds, uniform_seeds
from haq.engine.sensing import follow_sensitivities
from haq.engine.session import Costs, Session
from haq.engine.study import quiet_optuna
from haq.errors import lookup
from haq.history import summarize
from haq.outputs import write_outputs
from haq.rundir import WORKLOAD_FILE, OpenRun, RunRequest, identity, open_run
from haq.textfile import write_atomically

STALLED = 200
"""Candidates in a row without a new measurement, after which a search gives up."""


def run_search(problem: Problem, options: SearchOptions, out: Path, progress: Progress = silent) -> Path:
    """Search, or go on with the same search, in the run directory `out`; returns it when all its files are written.

    Raises InfeasibleError before any measurement when limits on cost cannot be met, InputError on wrong input. On
    KeyboardInterrupt and on any error every finished candidate is kept, and the front so far is written.
    """
    lookup(SAMPLERS, options.sampler, "sampler")
    base = baseline_costs(problem)
    guided = options.sampler in GUIDED and problem.sensitivity is not None
    planned = uniform_seeds(problem.space) if guided else seeds(problem.workload, problem.space)
    reachable = reachable_levels(problem, base, tuple(seed.levels for seed in planned))
    planned += tuple(Seed(f"seed:within-limits-{target}", levels) for target, levels in reachable.items())
    with (
        quiet_optuna(),
        open_run(out, request(problem, options)) as opened,
        _mirror(problem, options, opened) as mirror,
    ):
        progress(_started(problem, options, len(opened.run.history.candidates), base))
        if problem.space.yielded:
            progress(Notice(_apart(problem)))
        write_atomically(opened.run.path / WORKLOAD_FILE, problem.workload.to_json())
        session = Session(problem, options, opened, base, planned if options.seeds else ())
        progress(BaselineMeasured(session.baseline.measurements, session.left_s(), session.metric))
        try:
            follow_sensitivities(session, opened, base, progress)
            for target, lessons in session.lessons.items():
                mirror.open(target, tuple(zip(session.candidates, lessons, strict=True)))
            reason = _search(session, mirror, progress)
            if trouble := mirror.flush():
                progress(Notice(trouble))
            _validate_fronts(session, progress)
        finally:
            write_outputs(replace(opened.run, history=session.history))
        progress(Finished(reason, summarize(session.history), session.proposer.repeats))
    return out


def request(problem: Problem, options: SearchOptions) -> RunRequest:
    """What `run.json` holds."""
    # Left out where it is the default, so that runs of before this key are still the same search.
    seeded = {} if options.seeds else {"seeds": False}
    return RunRequest(
        spec=problem.spec,
        search={"sampler": options.sampler, "seed": options.seed, "trials": options.trials, **seeded},
        provenance=problem.provenance,
        targets={t.name: {"batch": t.batch, **t.trust.to_json(), "title": t.title} for t in problem.targets},
        space={
            "groups": {g.name: {"layers": list(g.layers), "bits": list(g.bits)} for g in problem.space.groups},
            "effective_size": effective_size(problem),
        },
    )


def _started(problem: Problem, options: SearchOptions, found: int, base: Costs) -> Started:
    """How large the space is, by what is executed, and which share of it keeps the limits."""
    free = [group for group in problem.space.groups if group.is_free]
    points = drawn_points(problem.space, options.seed)
    return Started(
        found,
        options.trials,
        groups=len(free),
        layers=sum(len(group.layers) for group in free),
        space_size=problem.space.size,
        effective_size=effective_size(problem),
        targets=tuple(target.name for target in problem.targets),
        kept=kept_shares(problem, base, points),
        drawn=len(points),
    )


def _apart(problem: Problem) -> str:
    """Which layers rules and pins set apart although devices treat them alike."""
    ties = problem.space.yielded
    some = "; ".join(", ".join(tie) for tie in ties[:3])
    more = f" and {len(ties) - 3} more" if len(ties) > 3 else ""
    return f"rules or pins set layers apart that devices treat alike: {some}{more}"


def _search(session: Session, mirror: Mirror, progress: Progress) -> str:
    """Evaluate candidates until something ends the search; returns what."""
    options, started, idle = session.options, time.perf_counter(), 0
    while session.done < options.trials:
        if options.timeout_s is not None and time.perf_counter() - started >= options.timeout_s:
            return "timeout"
        if idle >= STALLED:
            return "stalled"
        if options.until_converged and session.has_converged():
            return "converged"
        proposal = session.propose()
        if proposal is None:
            return "space exhausted"
        before = session.done
        candidate = session.evaluate(proposal)
        if trouble := mirror.add(candidate, {name: known[-1] for name, known in session.lessons.items()}):
            progress(Notice(trouble))
        idle = 0 if session.done > before else idle + 1
        progress(CandidateDone(candidate, session.done, options.trials, session.left_s(), session.best()))
    return "trials"


def _validate_fronts(session: Session, progress: Progress) -> None:
    """Measure the members of every target's front on the validation split; nothing is chosen on it."""
    members = session.unvalidated()
    for count, executed in enumerate(members.values(), 1):
        failure = session.validate(executed)
        progress(Validated(count, len(members), failure))


@contextlib.contextmanager
def _mirror(problem: Problem, options: SearchOptions, opened: OpenRun) -> Iterator[Mirror]:
    """The copy of the history for dashboards, connected before anything is measured."""
    path = opened.run.path
    mirror = Mirror(storage_url(options.storage, path), problem.space, path.resolve().name, identity(opened.run.info))
    try:
        yield mirror
    finally:
        mirror.close()
