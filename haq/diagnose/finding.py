"""The words of a diagnosis: a suspicion, the change that would undo its cause, the measured effect, and the finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from haq.accuracy import Interval
from haq.precision import Precision

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Repair:
    """One cause that can be undone. kind: a name in `haq.nn.diagnosis.repairs.REPAIRS`.

    layer: empty for the whole network. index: which operand, None for weight, output or all of the layer.
    """

    kind: str
    layer: str = ""
    index: int | None = None


@dataclass(frozen=True)
class Change:
    """What differs from the network under diagnosis. raised: layer -> the precision that it runs in instead, in pairs.

    `int4/fp32` raises only what the layer reads, `fp32/int8` only its weight.
    """

    repairs: tuple[Repair, ...] = ()
    raised: tuple[tuple[str, Precision], ...] = ()

    def __or__(self, other: Change) -> Change:
        """Both changes; where both raise a layer, the second one's precision holds."""
        raised = {**dict(self.raised), **dict(other.raised)}
        return Change(tuple(dict.fromkeys((*self.repairs, *other.repairs))), tuple(raised.items()))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a network answered on the judged samples, in a fixed order.

    kl: (n,) divergence from FP32's answer in nats, infinite where not finite; None where the task shows no logits.
    scores: (n,) of the metric, 1.0 right; None where the task gives one number. value: the mean score, or that number.
    """

    kl: Floats | None
    scores: Floats | None
    value: float


@dataclass(frozen=True)
class Effect:
    """What a change regains: points of the metric, nats of divergence, modelled milliseconds, each where it is known.

    Intervals are 95 %, paired over samples; of modelled milliseconds they are the profile's spread. samples: judged.
    """

    points: float | None = None
    points_interval: Interval | None = None
    nats: float | None = None
    nats_interval: Interval | None = None
    latency_ms: float | None = None
    latency_interval: Interval | None = None
    size_bytes: int | None = None
    samples: int = 0


@dataclass(frozen=True)
class Suspicion:
    """A statistic beyond its threshold. mode: a name in DETECTORS. severity: expected size of the harm, to rank by.

    layer: where; empty for the whole network. statistic: `name` -> value, its threshold beside it. text: one sentence
    with the numbers. change: what undoes the cause; None where only `effect`, known without measuring, proves it.
    """

    mode: str
    layer: str
    statistic: str
    value: float
    threshold: float
    severity: float
    text: str
    change: Change | None = None
    effect: Effect | None = None
    index: int | None = None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A suspicion whose cause was undone, with the measured (or modelled) effect. repair: what to do about it."""

    suspicion: Suspicion
    effect: Effect
    repair: str

    @property
    def mode(self) -> str:
        return self.suspicion.mode

    @property
    def layer(self) -> str:
        return self.suspicion.layer


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The verdict. lost: FP32 against the network as it is. explained: all findings' causes undone together.

    suspected: without a measured effect. shares: layer -> share of the loss that goes when it alone runs in FP32, where
    that was measured. forwards: sample-forwards spent. seconds: of wall time.
    """

    findings: tuple[Finding, ...]
    suspected: tuple[Suspicion, ...]
    lost: Effect
    explained: Effect
    shares: Mapping[str, float] = field(default_factory=dict)
    forwards: float = 0.0
    seconds: float = 0.0


class Bench(Protocol):
    """Measures changes of one network. What was measured once is kept."""

    @property
    def layers(self) -> tuple[str, ...]:
        """In the order in which they run."""

    @property
    def samples(self) -> int: ...

    @property
    def forwards(self) -> float:
        """Sample-forwards so far, FP32's included."""

    def fp32(self) -> Outcome: ...

    def measure(self, change: Change) -> Outcome:
        """The network under diagnosis with the change, on the judged samples."""

    def widest(self, layer: str) -> Precision:
        """What the layer is raised to, to see what its precision costs: FP32."""
