"""Gets a run its sensitivities, from its folder or by measuring, and lets the search follow them."""

from __future__ import annotations

import time

from haq.additivity import additivity
from haq.engine.events import Notice, Progress, SensitivityMeasured, SensitivityProgress
from haq.engine.guide import Guide
from haq.engine.problem import executed_by
from haq.engine.samplers import GUIDED
from haq.engine.session import Costs, Session
from haq.rundir import SENSITIVITY_FILE, OpenRun
from haq.sensitivity import pieces_of, read_sensitivity, write_sensitivity

PAIRS = 24
"""Pairs of pieces that are measured together, to see how far the sum of sensitivities can be trusted."""


def follow_sensitivities(session: Session, opened: OpenRun, base: Costs, progress: Progress) -> None:
    """Give the session's proposer a guide, where its sampler follows one and the problem can measure sensitivities.

    The file comes first and the history's record after it, so that a search that was killed between the two goes on to
    the same history.
    """
    problem, options = session.problem, session.options
    if options.sampler not in GUIDED:
        return
    if problem.sensitivity is None:
        filler = session.proposer.filler
        progress(Notice(f"sensitivities cannot be measured here: seeds, then {filler}, propose what is measured"))
        return
    path, spent_s = opened.run.path / SENSITIVITY_FILE, 0.0
    if path.is_file():
        found = read_sensitivity(path)
    else:
        started = time.perf_counter()
        pieces = pieces_of(problem.space, [executed_by(target) for target in problem.targets])
        found = problem.sensitivity(pieces, PAIRS, lambda done, total: progress(SensitivityProgress(done, total)))
        spent_s = time.perf_counter() - started
        write_sensitivity(path, found)
    if session.sensitivity_forwards != found.sample_forwards:
        session.count_sensitivities(found.sample_forwards, spent_s)
    progress(SensitivityMeasured(len(found.effects), found.samples, found.sample_forwards, additivity(found)))
    session.proposer.follow(Guide(problem, base, found, options.seed))
