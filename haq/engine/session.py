"""One run's growing state: candidates, shared measurements, the targets' studies; the history is written first."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping

from haq.accuracy import Measurement, compare
from haq.candidate import Candidate, TargetResult
from haq.constraints import LIMIT_OF
from haq.engine.problem import Problem, SearchOptions, Target, figures, price, sentences, unquantized
from haq.engine.proposals import Levels, Proposal, replace_repeat
from haq.engine.samplers import trial_seed
from haq.engine.seeds import Seed
from haq.engine.study import Lesson, TargetStudy
from haq.front import Point, front
from haq.history import SEARCH, VALIDATION, Baseline, History
from haq.precision import Assignment
from haq.rundir import OpenRun

DROP_SCALE_POINTS = 1.0
"""Excess drop counts per point, the excess of other limits as a fraction of the limit."""

Costs = Mapping[str, Mapping[str, float]]
"""Target -> figures."""


class Session:
    """What a search knows. It changes with every candidate; all of it can be rebuilt from the history.

    measured: executed signature -> measurement. done: candidates for which something new was measured.
    """

    def __init__(
        self, problem: Problem, options: SearchOptions, opened: OpenRun, base: Costs, seeds: Iterable[Seed]
    ) -> None:
        """Measure FP32 unless the history has it, and learn what the history holds. base: costs of FP32."""
        history = opened.run.history
        self.problem, self.options, self._writer, self._base = problem, options, opened.writer, base
        self.seconds = history.seconds
        self.baseline = history.baseline if history.baseline is not None else self._measure_baseline()
        self._seeds = deque(seeds)
        self.validations = dict(history.validations or {})
        self.measured: dict[str, Measurement] = {self.baseline.signature: self.baseline.measurements[SEARCH]}
        self.candidates: list[Candidate] = []
        self.lessons: dict[str, list[Lesson]] = {target.name: [] for target in problem.targets}
        self.done = 0
        self._seen: set[tuple[str, ...]] = set()
        self._studies = tuple(TargetStudy(problem.space, options.sampler, options.seed) for _ in problem.targets)
        for candidate in history.candidates:
            if candidate.origin == options.sampler:
                self._asker(candidate.number).replay(candidate.number)
            self._take(candidate)

    @property
    def history(self) -> History:
        """As `read_history` would find it now."""
        return History(self.baseline, tuple(self.candidates), self.validations, self.seconds)

    def propose(self) -> Proposal | None:
        """The next thing to evaluate; None when the space holds nothing new."""
        number = len(self.candidates)
        while self._seeds:
            seed = self._seeds.popleft()
            if self._is_new(seed.levels):
                return Proposal(seed.origin, seed.levels)
        asked = self._asker(number).ask(number)
        levels = replace_repeat(self.problem.space, asked, self._is_new, trial_seed(self.options.seed + 1, number))
        return None if levels is None else Proposal(self.options.sampler, levels)

    def evaluate(self, proposal: Proposal) -> Candidate:
        """Price the proposal on every target, measure what is neither infeasible nor known, record and learn."""
        requested = self.problem.space.assignment(proposal.levels)
        priced = [price(t, requested, self._base[t.name]) for t in self.problem.targets]
        started = time.perf_counter()
        fresh = dict(self.measured)
        for result in priced:
            signature = result.executed.signature
            if result.is_feasible and signature not in fresh:
                fresh[signature] = self.measure(result.executed, SEARCH)
        spent = time.perf_counter() - started
        results = tuple(
            self._judge(target, result, fresh.get(result.executed.signature))
            for target, result in zip(self.problem.targets, priced, strict=True)
        )
        candidate = Candidate(len(self.candidates), proposal.origin, requested, results)
        self._writer.append("candidate", candidate.to_json(), measure_s=spent)
        self.seconds += spent
        self._take(candidate)
        return candidate

    def validate(self, executed: Assignment) -> None:
        """Measure executed formats on the validation split, once."""
        started = time.perf_counter()
        measurement = self.measure(executed, VALIDATION)
        spent = time.perf_counter() - started
        record = {"signature": executed.signature, "measurement": measurement.to_json()}
        self._writer.append("validation", record, measure_s=spent)
        self.seconds += spent
        self.validations[executed.signature] = measurement

    def measure(self, executed: Assignment, split: str) -> Measurement:
        """The measurement against FP32; raises InputError when the user's function returns nonsense."""
        return compare(self.baseline.scores[split], self.problem.scores(executed, split), split)

    def unvalidated(self) -> dict[str, Assignment]:
        """Executed signature -> formats, for members of the targets' fronts that the held-out split has not seen."""
        if VALIDATION not in self.problem.splits:
            return {}
        members = {
            point.result.executed.signature: point.result.executed
            for target in self.problem.targets
            for point in front(self.candidates, target.name)
        }
        history = self.history
        return {sig: executed for sig, executed in members.items() if history.validation(sig) is None}

    def left_s(self) -> float:
        """Estimated seconds to the end: the candidates' measurements and the front's validation.

        Measurements per candidate as so far, or as the seeds need; a validation counts like any other measurement.
        """
        known = len(self.measured) + len(self.baseline.measurements) - 1 + len(self.validations)
        each = self.seconds / known
        per_candidate = (len(self.measured) - 1) / self.done if self.done else self._signatures_per_seed()
        return each * (per_candidate * max(0, self.options.trials - self.done) + len(self.unvalidated()))

    def best(self) -> dict[str, Point]:
        """Target -> its smallest feasible point, within 1 point of FP32 where no largest drop is set."""
        found = {}
        for target in self.problem.targets:
            limit = target.constraints.max_drop_points
            bound = 1.0 if limit is None else limit
            points = [p for p in front(self.candidates, target.name) if p.losses[2] <= bound]
            if points:
                found[target.name] = points[0]
        return found

    def _measure_baseline(self) -> Baseline:
        executed = unquantized(self.problem.workload)
        started = time.perf_counter()
        scores = {split: self.problem.scores(executed, split) for split in self.problem.splits}
        spent = time.perf_counter() - started
        measurements = {split: compare(s, s, split) for split, s in scores.items()}
        baseline = Baseline(executed.signature, scores, measurements, self._base)
        self._writer.append("baseline", baseline.to_json(), measure_s=spent)
        self.seconds += spent
        return baseline

    def _judge(self, target: Target, priced: TargetResult, measurement: Measurement | None) -> TargetResult:
        if measurement is None:
            return priced
        known = {**figures(priced.costs, self._base[target.name]), "drop_points": measurement.drop_points}
        violations = sentences(target.constraints.judge(known))
        return TargetResult(target.name, priced.executed, priced.fallbacks, priced.costs, measurement, violations)

    def _take(self, candidate: Candidate) -> None:
        """Count a recorded candidate and let every target's study learn from it."""
        new = {r.executed.signature: r.measurement for r in candidate.results if r.measurement is not None}
        self.done += bool(new.keys() - self.measured.keys())
        self.measured |= new
        self._seen.add(tuple(r.executed.signature for r in candidate.results))
        self.candidates.append(candidate)
        for target, study in zip(self.problem.targets, self._studies, strict=True):
            lesson = self._lesson(target, candidate)
            self.lessons[target.name].append(lesson)
            study.learn(lesson)

    def _lesson(self, target: Target, candidate: Candidate) -> Lesson:
        """Values and relative excesses; an unmeasured drop is infeasible anyway and stands in the middle of the known.

        Optuna needs three numbers and ranks infeasible trials by their excess; only GP looks at the stand-in.
        """
        result = candidate.on(target.name)
        if result.measurement is None:
            earlier = [lesson.values[2] for lesson in self.lessons[target.name]]
            drop = statistics.median(earlier) if earlier else 0.0
        else:
            drop = result.measurement.drop_points
        known = figures(result.costs, self._base[target.name])
        constraints = {}
        for limit, bound in target.constraints.set_limits().items():
            if limit == "max_drop_points":
                constraints[limit] = 0.0 if result.measurement is None else (drop - bound) / DROP_SCALE_POINTS
            elif limit == "max_latency_rise_ms":
                constraints[limit] = (known["latency_rise_ms"] - bound) / self._base[target.name]["latency_ms"]
            else:
                constraints[limit] = (known[LIMIT_OF[limit]] - bound) / bound
        levels = self.problem.space.levels(candidate.requested)
        return Lesson(levels, (known["size_bytes"], known["latency_ms"], drop), constraints)

    def _is_new(self, levels: Levels) -> bool:
        """Whether the levels execute differently from every earlier candidate on some target."""
        requested = self.problem.space.assignment(levels)
        return tuple(t.legalize(requested)[0].signature for t in self.problem.targets) not in self._seen

    def _signatures_per_seed(self) -> float:
        """How many different executions one request means over the targets, on average over the seeds."""
        seeds = [self.problem.space.assignment(seed.levels) for seed in self._seeds]
        counts = [len({t.legalize(a)[0].signature for t in self.problem.targets}) for a in seeds]
        return statistics.fmean(counts) if counts else float(len(self.problem.targets))

    def _asker(self, number: int) -> TargetStudy:
        """The targets' studies are asked in turn."""
        return self._studies[number % len(self._studies)]
