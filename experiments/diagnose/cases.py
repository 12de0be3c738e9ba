"""Lists what is planted to test the diagnosis: networks x modes x places x strengths, pairs of faults, healthy ones.

Everything here was fixed before any detection run; nothing is chosen by what a detector says.

Base. Each network is its default int8 version (`int8/int8` everywhere, default techniques, observer mse); cost faults
start from all layers at 8 bits (not-executed) or 16 bits (no-speedup) on a target, at batch 1.
Places. Three of `places()` by position only: those at 3/20, 1/2 and 9/10 of the list (fewer where the list is shorter);
thirds would meet a transformer's period and be queries all.
Strengths. The three defaults of `haq.diagnose.strengths.STRENGTHS`.
Targets of cost faults. By place: TARGETS in turn, over those of them where the fault can be planted at all.
Pairs. Each two of the ten modes of accuracy once per network, at middle strength, the first in its early and the second
in its late place, planted in the order in which their networks change least: rescalings first.

Measurable. A fault of accuracy is measurable if, on the judged samples, it raises the mean KL divergence from FP32 over
the healthy int8 network's by at least MEASURABLE_NATS with the paired 95 % interval above 0, or gives what is not
finite. A fault of cost is measurable if it costs MEASURABLE_SHARE of a modelled figure: no-speedup the latency against
the same network without the islands, not-executed the size or the latency beyond what was asked for. What runs narrower
than asked (fp32 in fp16 on mobile) costs neither; a diagnosis names it without an effect. A pair is measurable if each
of its faults is, alone. What is not measurable is published and left out of the rates. A case that cannot be planted
(scaled weights beyond fp16) counts as not measurable.

Right. A finding is right if its mode is the case's and its layer one of `touched()`, or of cost one of those planted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from haq.diagnose.cost_faults import cost_places
from haq.diagnose.strengths import ACCURACY_MODES, COST_MODES, STRENGTHS
from haq.hardware.schema import HardwareProfile
from haq.nn.diagnosis.faults import places
from haq.nn.diagnosis.subject import Subject
from haq.workload import Workload

SPACES = ("mnist_resnet18", "reviews_minilm", "solar_efficientnet_lite0")
TARGETS = ("tpu-v4", "a100", "mobile")
HEALTHY = ("fp32", "fp16", "int8")
"""Versions without a fault; `fp16` runs every layer in fp16/fp16."""
MEASURABLE_NATS = 0.02
MEASURABLE_SHARE = 0.01
RESCALINGS = ("channel-imbalance", "float-range")
"""They change the FP32 network and measure it, so that they come before what else is planted."""


@dataclass(frozen=True)
class Case:
    """One network with what is planted in it. base: one of HEALTHY. modes, layers, strengths: a fault each, in the
    order of planting; empty where it is healthy. target: of a fault of cost, else empty."""

    name: str
    space: str
    base: str = "int8"
    modes: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    seed: int = 0
    target: str = ""


def cases(space: str, subject: Subject, profiles: Mapping[str, HardwareProfile]) -> Iterator[Case]:
    """All cases of one network. subject: its default int8 version, with calibration data. profiles: of TARGETS."""
    yield from (Case(f"{space}/healthy/{base}", space, base) for base in HEALTHY)
    at = {mode: chosen(places(subject, mode)) for mode in ACCURACY_MODES}
    for mode in ACCURACY_MODES:
        yield from (_case(space, mode, layer, strength) for layer, strength in _grid(at[mode], mode))
    yield from _cost_cases(space, subject.workload, profiles)
    yield from _pairs(space, at)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The early, middle and late one: those at 3/20, 1/2 and 9/10 of the list, each once."""
    return tuple(dict.fromkeys(names[twentieth * len(names) // 20] for twentieth in (3, 10, 18) if names))


def _case(space: str, mode: str, layer: str, strength: float, target: str = "") -> Case:
    name = "/".join(part for part in (space, mode, target, layer, f"{strength:g}") if part)
    return Case(name, space, "int8", (mode,), (layer,), (strength,), _seed(layer), target)


def _grid(layers: Sequence[str], mode: str) -> Iterator[tuple[str, float]]:
    yield from itertools.product(layers, STRENGTHS[mode].defaults)


def _cost_cases(space: str, workload: Workload, profiles: Mapping[str, HardwareProfile]) -> Iterator[Case]:
    for mode in COST_MODES:
        at = {target: chosen(found) for target in TARGETS if (found := cost_places(workload, profiles[target], mode))}
        for number in range(3 if at else 0):
            target = tuple(at)[number % len(at)]
            layer = at[target][min(number, len(at[target]) - 1)]
            yield from (_case(space, mode, layer, strength, target) for strength in STRENGTHS[mode].defaults)


def _pairs(space: str, at: Mapping[str, tuple[str, ...]]) -> Iterator[Case]:
    for first, second in itertools.combinations(ACCURACY_MODES, 2):
        if at[first] and at[second] and at[first][0] != at[second][-1]:
            both = ((first, at[first][0]), (second, at[second][-1]))
            faults = sorted(both, key=lambda fault: fault[0] not in RESCALINGS)
            modes, layers = tuple(mode for mode, _ in faults), tuple(layer for _, layer in faults)
            strengths = tuple(STRENGTHS[mode].defaults[1] for mode in modes)
            name = f"{space}/two/{'+'.join(f'{mode}@{layer}' for mode, layer in faults)}"
            yield Case(name, space, "int8", modes, layers, strengths, _seed(*layers))


def _seed(*layers: str) -> int:
    """A seed that only depends on the names of the places."""
    return sum(map(ord, "".join(layers))) % 1000
