"""A bench whose losses are known functions of what runs, on a chain of linear layers, for the tests of recovery."""

from __future__ import annotations

import itertools

import numpy as np
from nets import linear, relu

from haq.diagnose.finding import Change, Diagnosis, Effect, Finding, Outcome, Repair, Suspicion
from haq.diagnose.rungs import expected_noise, pricing
from haq.hardware.profile import load_profile
from haq.precision import Assignment, Precision
from haq.workload import Workload

SAMPLES = 2000
POINTS_PER_NAT = 20.0


def chain(widths, name="chain"):
    """Linear layers of these widths, a relu between."""
    nodes, source = [], "x"
    for i, (cin, cout) in enumerate(itertools.pairwise(widths)):
        nodes += [linear(f"l{i}", source, cin, cout, rows=16), relu(f"relu{i}", f"l{i}", (16, cout))]
        source = f"relu{i}"
    return Workload(name, (("x", (16, widths[0])),), tuple(nodes), (source,))


class Known:
    """lost: (layer, precision) -> nats; joint: what the network loses of the layers' losses; undone: Repair -> nats."""

    def __init__(self, workload, executed, lost, joint=sum, undone=None, noise=1e-5):
        self.workload, self.executed, self.lost, self.joint = workload, executed, lost, joint
        self.undone, self.measured = undone or {}, {}
        self.noise = noise * np.random.default_rng(0).standard_normal(SAMPLES)

    layers = property(lambda self: self.workload.layer_names)
    samples = SAMPLES
    forwards = property(lambda self: float(SAMPLES * len(self.measured)))

    def widest(self, layer):
        return Precision.parse("fp32")

    def fp32(self):
        return Outcome(np.zeros(SAMPLES), np.ones(SAMPLES), 1.0)

    def measure(self, change):
        key = (frozenset(change.repairs), frozenset(change.raised))
        if key not in self.measured:
            self.measured[key] = self.outcome(dict(change.raised), change.repairs)
        return self.measured[key]

    def outcome(self, raised, repairs=()):
        runs = {layer: raised.get(layer, self.executed.precision(layer)) for layer in self.layers}
        undone = {r.layer: self.undone.get(r, 0.0) for r in repairs}
        lost = [max(self.lost(layer, runs[layer]) - undone.get(layer, 0.0), 0.0) for layer in self.layers]
        total = self.joint(lost)
        wrong = round(POINTS_PER_NAT * total / 100 * SAMPLES)
        scores = np.ones(SAMPLES)
        scores[:wrong] = 0.0
        return Outcome(np.maximum(total + self.noise * (total > 0), 0.0), scores, float(scores.mean()))


def by_noise(workload, executed, shares):
    """Losses as rounding noise has them: a share as it runs, less in a wider precision."""
    specs = {layer.name: layer for layer in workload.layers}

    def lost(layer, precision):
        now = expected_noise(specs[layer], executed.precision(layer))
        return shares[layer] * expected_noise(specs[layer], precision) / now

    return lost


def case(widths, precisions, shares, target="a100", **more):
    """(bench, options) of a chain."""
    workload = chain(widths)
    names = workload.layer_names
    executed = Assignment.of({name: Precision.parse(p) for name, p in zip(names, precisions, strict=True)})
    lost = by_noise(workload, executed, dict(zip(names, shares, strict=True)))
    return Known(workload, executed, lost, **more), pricing(workload, executed, load_profile(target))


def diagnosis(*repairs):
    """One finding per repair."""
    findings = tuple(
        Finding(Suspicion("m", r.layer, "s", 1.0, 0.0, 1.0, "text", Change((r,))), Effect(nats=1.0), "repair")
        for r in repairs
    )
    return Diagnosis(findings, (), Effect(), Effect())


__all__ = ["POINTS_PER_NAT", "SAMPLES", "Known", "Repair", "by_noise", "case", "chain", "diagnosis"]
