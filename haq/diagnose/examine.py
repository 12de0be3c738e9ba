"""The diagnosis: suspects by statistics, proves by undoing, and looks by group testing for what stays unexplained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from haq.diagnose import error_accumulation, no_speedup, not_executed, sensitive_operator
from haq.diagnose.costs import CostEvidence
from haq.diagnose.detectors import COST_DETECTORS, DETECTORS, REPAIRS
from haq.diagnose.effects import FLOOR_NATS, is_measured, regained, size
from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Bench, Change, Diagnosis, Effect, Finding, Suspicion
from haq.diagnose.localize import Shares, localize

BUDGET = 8
"""Suspicions that are tried alone, the most severe first: decision 25's "about eight interventions"."""

UNEXPLAINED = 0.1
"""The share of the loss that may stay unexplained before group testing looks for where it comes from."""

Progress = Callable[[str, int, int], None]
"""(what is being done, networks measured so far, how many there will be as far as it is known)."""


def diagnose(
    bench: Bench,
    evidence: Evidence,
    costs: CostEvidence | None,
    *,
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Diagnosis:
    """The causes of what the network lost, proved; and of what it costs in vain, priced.

    The most severe suspicions are tried alone and accepted, best first, while each still regains something on top of
    those before it: whatever another cause explains is no finding. The layers of what is left are found by group
    testing, and their suspicions tried in turn. A network that lost nothing measurable has no accuracy findings,
    whatever its statistics look like.
    """
    start = time.perf_counter()
    case = _Case(bench, evidence, progress)
    suspicions = sorted((s for detect in DETECTORS.values() for s in detect(evidence)), key=lambda s: -s.severity)
    local = [s for s in suspicions if s.mode != error_accumulation.MODE]
    lost = regained(bench.measure(Change()), bench.fp32())
    shares = Shares()
    if is_measured(lost):
        case.try_all(local[:budget], "suspicions")
        if case.unexplained(lost) > UNEXPLAINED:
            together = (s for s in suspicions if s.mode == error_accumulation.MODE)
            case.try_all((s for s in together if case.adds_up(s)), "accumulation")
        if case.unexplained(lost) > UNEXPLAINED:
            shares = localize(bench, case.accepted, bench.layers, tell=case.tell)
            culprits = [layer for layer, effect in shares.layers.items() if is_measured(effect)]
            # Those tried before as well: what masked them is undone by now.
            case.try_all([s for s in local if s.layer in culprits and not case.is_found(s)], "layers found")
            left = size(case.left())
            case.try_all(sensitive_operator.judge(shares, left, case.explained_layers), "operators")
    priced = [] if costs is None else [s for detect in COST_DETECTORS.values() for s in detect(costs)]
    findings = [*case.findings, *cost_findings(priced)]
    explained = regained(bench.measure(Change()), bench.measure(case.accepted))
    return Diagnosis(
        tuple(findings),
        tuple(s for s in (*suspicions, *priced) if all(finding.suspicion is not s for finding in findings)),
        lost,
        explained,
        shares.of(size(lost)),
        bench.forwards,
        time.perf_counter() - start,
    )


def cost_findings(priced: Sequence[Suspicion]) -> Iterator[Finding]:
    """Suspicions that the cost model proves. Narrowing that costs time in layers that do not run as asked is what that
    does, and no finding of its own."""
    proved = [s for s in priced if s.mode == not_executed.MODE and s.effect is not None]
    refused = {layer for s in proved for layer in (s.layer, *s.layers)}
    for suspicion in priced:
        is_consequence = suspicion.mode == no_speedup.MODE and refused.issuperset(suspicion.layers)
        if suspicion.effect is not None and not is_consequence:
            yield Finding(suspicion, suspicion.effect, REPAIRS[suspicion.mode])


class _Case:
    """Findings so far. It changes as suspicions are tried."""

    def __init__(self, bench: Bench, evidence: Evidence, progress: Progress | None) -> None:
        self._bench, self._evidence, self._progress = bench, evidence, progress
        self._spent = 0
        self.findings: list[Finding] = []
        self.accepted = Change()

    @property
    def explained_layers(self) -> frozenset[str]:
        """Those in which a cause was proved."""
        return frozenset(layer for f in self.findings for layer in (f.layer, *f.suspicion.layers) if layer)

    def is_found(self, suspicion: Suspicion) -> bool:
        return any(finding.suspicion is suspicion for finding in self.findings)

    def left(self) -> Effect:
        """What is still lost with all causes undone that were proved."""
        return regained(self._bench.measure(self.accepted), self._bench.fp32())

    def adds_up(self, suspicion: Suspicion) -> bool:
        """Whether the suspected layers lose more together than alone, measured without all others."""
        raised = Change(raised=tuple((layer, self._bench.widest(layer)) for layer in self._bench.layers))
        return error_accumulation.adds_up(
            self._bench, self._evidence, suspicion, self.accepted, raised,
            lambda left: self.tell("accumulation", left),
        )  # fmt: skip

    def unexplained(self, lost: Effect) -> float:
        """The share of the loss that is still there; 0 once it is too little to be measured."""
        left = self.left()
        return size(left) / size(lost) if is_measured(left) else 0.0

    def try_all(self, suspicions: Iterable[Suspicion], what: str) -> None:
        """Undo each cause on top of those accepted; accept, best first, those that regain something there.

        After each accepted one all others are tried again, as long as anything is left to explain: a large cause hides
        a small one.
        """
        candidates = [s for s in suspicions if s.change is not None]
        while candidates:
            effects = []
            for i, candidate in enumerate(candidates):
                effects.append(self._on_top(candidate))
                self.tell(what, len(candidates) - i - 1)
            best = max(range(len(candidates)), key=lambda i: (size(effects[i]), -i))
            if not is_measured(effects[best], FLOOR_NATS):
                return
            suspicion = candidates.pop(best)
            assert suspicion.change is not None
            self.findings.append(Finding(suspicion, effects[best], REPAIRS[suspicion.mode]))
            self.accepted = self.accepted | suspicion.change
            if not is_measured(self.left()):
                return

    def tell(self, what: str, left: int) -> None:
        """Say that one more is measured, and how many of this kind are left."""
        self._spent += 1
        if self._progress is not None:
            self._progress(what, self._spent, self._spent + left)

    def _on_top(self, suspicion: Suspicion) -> Effect:
        assert suspicion.change is not None
        base = self._bench.measure(self.accepted)
        return regained(base, self._bench.measure(self.accepted | suspicion.change))
