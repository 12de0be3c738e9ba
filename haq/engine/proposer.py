"""Decides what is evaluated next: seeds, the predicted front, what the guide expects most of, then the samplers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from haq.accuracy import Measurement
from haq.candidate import Candidate
from haq.engine.guide import Guide
from haq.engine.problem import Problem, SearchOptions
from haq.engine.proposals import Levels, Proposal, replace_repeat
from haq.engine.samplers import GUIDED, trial_seed
from haq.engine.seeds import Seed
from haq.engine.study import Lesson, TargetStudy
from haq.surrogate import observed

FILLS_EVERY = 8
"""One of so many candidates comes from an Optuna sampler also while the guide expects gains: it may err."""

PREDICTED, SURROGATE = "predicted", "surrogate"
"""Origins of candidates that the guide proposes, from the predicted front and by expected gain."""


class Proposer:
    """The targets' studies, the seeds, and the guide where there is one. It changes with every candidate.

    repeats: proposals of a sampler that would have been executed like an earlier candidate and were replaced.
    """

    def __init__(self, problem: Problem, options: SearchOptions, seeds: Iterable[Seed]) -> None:
        self._problem, self._options = problem, options
        self._seeds = deque(seeds)
        self._guide: Guide | None = None
        self._studies = tuple(TargetStudy(problem.space, options.sampler, options.seed) for _ in problem.targets)
        self._seen: dict[str, list[tuple[Levels, Measurement, bool]]] = {target.name: [] for target in problem.targets}
        self.repeats = 0

    def follow(self, guide: Guide) -> None:
        """Ask the guide's predicted front after the seeds, and the guide itself after that."""
        self._guide = guide
        planned = guide.plan([seed.levels for seed in self._seeds])
        self._seeds.extend(Seed(PREDICTED, levels) for levels in planned)

    def propose(self, number: int, needed: Callable[[Levels], int]) -> Proposal | None:
        """The proposal for the run's candidate `number`; None when the space holds nothing new.

        needed: how many measurements levels need, 0 for those that execute like an earlier candidate on every target.
        """
        while self._seeds:
            seed = self._seeds.popleft()
            if needed(seed.levels):
                return Proposal(seed.origin, seed.levels)
        if (levels := self._guided(number, needed)) is not None:
            return Proposal(SURROGATE, levels)
        asked = self._asker(number).ask(number)
        space, seed_number = self._problem.space, trial_seed(self._options.seed + 1, number)
        found = replace_repeat(space, asked, lambda levels: needed(levels) > 0, seed_number)
        self.repeats += found not in (None, asked)
        return None if found is None else Proposal(self.filler, found)

    @property
    def filler(self) -> str:
        """The Optuna sampler that proposes where the guide does not."""
        return GUIDED.get(self._options.sampler, self._options.sampler)

    def replay(self, candidate: Candidate) -> None:
        """On resume, ask as then, where the sampler keeps state in the study."""
        if candidate.origin == self.filler:
            self._asker(candidate.number).replay(candidate.number)

    def learn(self, candidate: Candidate, levels: Levels, lessons: Mapping[str, Lesson]) -> None:
        """Let every target's study, and the guide, learn from a candidate."""
        for target, study in zip(self._problem.targets, self._studies, strict=True):
            study.learn(lessons[target.name])
            result = candidate.on(target.name)
            if result.measurement is not None:
                self._seen[target.name].append((levels, result.measurement, result.is_feasible))

    def _guided(self, number: int, needed: Callable[[Levels], int]) -> Levels | None:
        """What the guide proposes; None where there is none, it expects nothing, or it is the filler's turn."""
        guide, groups = self._guide, len(self._problem.space.groups)
        # Optuna's samplers take a quarter of a second for hundreds of groups, the guide a third of that.
        if guide is None or (number % FILLS_EVERY == FILLS_EVERY - 1 and not guide.is_large):
            return None
        seen = {
            name: observed([row[0] for row in rows], [row[1] for row in rows], guide.measure, groups)
            for name, rows in self._seen.items()
        }
        feasible = {name: np.array([row[2] for row in rows], dtype=bool) for name, rows in self._seen.items()}
        return guide.propose(number, seen, feasible, needed)

    def _asker(self, number: int) -> TargetStudy:
        """The targets' studies are asked in turn; where a guide leaves every eighth number, by eights."""
        turn = number if self._guide is None else number // FILLS_EVERY
        return self._studies[turn % len(self._studies)]
