"""Gets a run its sensitivities, from its folder or by measuring, and lets the search follow them."""

from __future__ import annotations

import time
from pathlib import Path

from haq.additivity import additivity
from haq.engine.events import Notice, Progress, SensitivityMeasured, SensitivityProgress
from haq.engine.guide import Guide
from haq.engine.problem import executed_by
from haq.engine.samplers import GUIDED
from haq.engine.session import Costs, Session
from haq.rundir import SENSITIVITY_FILE, OpenRun
from haq.sensitivity import Sensitivity, pieces_of, read_sensitivity, write_sensitivity

PAIRS = 24
"""Pairs of pieces that are measured together, to see how far the sum of sensitivities can be trusted."""


def follow_sensitivities(session: Session, opened: OpenRun, base: Costs, progress: Progress) -> None:
    """Give the session's proposer a guide, where its sampler follows one and the problem can measure sensitivities."""
    problem, options = session.problem, session.options
    if options.sampler not in GUIDED:
        return
    path = opened.run.path / SENSITIVITY_FILE
    if problem.sensitivity is None and not path.is_file():
        filler = session.proposer.filler
        progress(Notice(f"sensitivities cannot be measured here: seeds, then {filler}, propose what is measured"))
        return
    sensitivity = read_sensitivity(path) if path.is_file() else _measure(session, opened, path, progress)
    found = additivity(sensitivity)
    progress(SensitivityMeasured(len(sensitivity.effects), sensitivity.samples, sensitivity.sample_forwards, found))
    session.proposer.follow(Guide(problem, base, sensitivity, options.seed))


def _measure(session: Session, opened: OpenRun, path: Path, progress: Progress) -> Sensitivity:
    problem = session.problem
    assert problem.sensitivity is not None
    pieces = pieces_of(problem.space, [executed_by(target) for target in problem.targets])
    started = time.perf_counter()
    found = problem.sensitivity(pieces, PAIRS, lambda done, total: progress(SensitivityProgress(done, total)))
    spent = time.perf_counter() - started
    session.count_sensitivities(found.sample_forwards, spent)
    write_sensitivity(path, found)
    return found
