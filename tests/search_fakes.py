"""A handcrafted network, targets and accuracy whose every figure is arithmetic: what the search's tests run on."""

from __future__ import annotations

import numpy as np

from haq.accuracy import Reading
from haq.candidate import Fallback
from haq.constraints import Constraints
from haq.engine.problem import Problem, Target
from haq.precision import Assignment, Precision
from haq.racing import Watch, hardest_first, plan
from haq.space import build_space
from haq.workload import GlueOp, LayerSpec, WeightSpec, Workload

MEANING = {4: "int4/int8", 8: "int8/int8", 16: "fp16/fp16", 32: "fp32/fp32"}
POINTS_LOST = {4: 4.0, 8: 0.25, 16: 0.0, 32: 0.0}
"""Accuracy points that a layer loses, before division by the number of layers."""


def linear(name: str, weights: int, source: str, *, key: str | None = None) -> LayerSpec:
    weight = WeightSpec(key or f"{name}.weight", (weights, 1), 0)
    return LayerSpec(name, "linear", (source,), ((1,),), (weights,), weights, None, weight)


def workload(names: tuple[str, ...] = ("a", "b", "c", "d")) -> Workload:
    """A chain of layers with 100, 200, 300, ... weights, and one op between."""
    nodes: list[LayerSpec | GlueOp] = []
    source = "x"
    for i, name in enumerate(names, 1):
        nodes.append(linear(name, 100 * i, source))
        source = name
    nodes.append(GlueOp("relu", "activation", (source,), ((1,),), (1,)))
    return Workload("chain", (("x", (1,)),), tuple(nodes), ("relu",))


def target(net: Workload, constraints: Constraints = Constraints(), *, name="plain", no_int4=()) -> Target:  # noqa: B008
    """Size: weights at their bits. Latency: 1 ms plus 1 us per byte. Layers in `no_int4` fall back to int8."""
    weights = {layer.name: layer.weight.elements for layer in net.layers if layer.weight}

    def legalize(assignment: Assignment) -> tuple[Assignment, tuple[Fallback, ...]]:
        executed, fallbacks = {}, []
        for layer, bits in assignment.items():
            asked = Precision.parse(MEANING[bits]) if isinstance(bits, int) else bits
            executed[layer] = asked
            if bits == 4 and layer in no_int4:
                executed[layer] = Precision.parse(MEANING[8])
                fallbacks.append(Fallback(layer, asked, executed[layer], "no int4 kernel"))
        return Assignment.of(executed), tuple(fallbacks)

    def costs(executed: Assignment) -> dict[str, float]:
        size = sum(weights[n] * executed.precision(n).weight.bits / 8 for n in executed)
        return {"size_bytes": size, "latency_ms": 1 + size / 1000}

    return Target(name, legalize, costs, constraints)


class Accuracy:
    """An additive, noise-free measure that counts its calls; 90 % at FP32."""

    def __init__(self, *, stop_after: int | None = None, nan_after: int | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.stop_after, self.nan_after = stop_after, nan_after

    def __call__(self, executed: Assignment, split: str) -> float:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        if self.nan_after is not None and len(self.calls) >= self.nan_after:
            return float("nan")
        self.calls.append((executed.signature, split))
        lost = [POINTS_LOST[executed.precision(n).weight.bits] * (1 + i) for i, n in enumerate(executed)]
        return 0.9 - sum(lost) / 100 / len(lost) ** 2


class SampleScores(Accuracy):
    """The same with 200 scores per split: right up to the accuracy, wrong after."""

    def __call__(self, executed: Assignment, split: str) -> np.ndarray:
        accuracy = super().__call__(executed, split)
        return (np.arange(200) < round(200 * accuracy)).astype(float)


class Raced(Accuracy):
    """400 samples of which FP32 is right on 360; a candidate loses the right ones with the smallest margins.

    How many it loses is the accuracy of `Accuracy` in steps of a sample. margins: sample i's is i for the right ones.
    """

    right = np.random.default_rng(5).permutation(400) >= 40
    margins = np.random.default_rng(6).permutation(400).astype(float)

    def scores(self, executed: Assignment, split: str) -> np.ndarray:
        lost = round(400 * (0.9 - super().__call__(executed, split)))
        hard = np.argsort(np.where(self.right, self.margins, np.inf))
        scores = self.right.astype(float)
        scores[hard[:lost]] = 0.0
        return scores

    def __call__(self, executed: Assignment, split: str) -> np.ndarray:
        return self.scores(executed, split)

    def race(self, executed: Assignment, watch: Watch) -> Reading:
        scores, steps = self.scores(executed, "search"), plan(400, hardest_first(self.right, self.margins))
        for number, end in enumerate(steps.ends[:-1]):
            look = steps.look(number, scores[steps.order[:end]], is_continuous=False)
            if watch(look):
                return Reading(look.scores, look=look)
        return Reading(scores)


def problem(net=None, targets=None, measure=None, **space_arguments) -> Problem:
    net = net or workload()
    return Problem(
        net,
        build_space(net, **space_arguments),
        targets or (target(net),),
        measure or Accuracy(),
        spec={"scope": {"space": "chain"}},
        provenance={"model": "chain", "weights_hash": "w0", "data_hash": "d0"},
        race=measure.race if isinstance(measure, Raced) else None,
    )
