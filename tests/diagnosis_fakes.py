"""A diagnosis and its evidence, written down by hand: twelve layers, one with outliers, one clipped, one in fp16."""

from __future__ import annotations

import numpy as np

from haq.accuracy import Interval
from haq.diagnose.evidence import Evidence, LayerEvidence, OperandEvidence, OutputEvidence, WeightEvidence
from haq.diagnose.finding import Change, Diagnosis, Effect, Finding, Repair, Suspicion
from haq.precision import FORMATS, Assignment, Precision
from haq.workload import Workload

NAMES = tuple(f"layer{i // 4 + 1}.{i % 4 // 2}.conv{i % 2 + 1}" for i in range(12))
OUTLIERS, CLIPPED, FLOAT = NAMES[3], NAMES[7], NAMES[11]


def operand(layer: str, used: tuple[float, float], sqnr_db: float, best: tuple[float, float], best_db: float):
    values = np.random.default_rng(len(layer) + int(used[1])).standard_normal(4096)
    if layer == OUTLIERS:
        values[:3] = (35.0, 38.0, 39.5)
    counts, edges = np.histogram(values, 128)
    return OperandEvidence(
        layer=layer, index=0, format=FORMATS["int8"], range=used, seen=(float(values.min()), float(values.max())),
        calibrated=(used[0] * 0.9, used[1] * 0.9), sqnr_db=sqnr_db, best_sqnr_db=best_db, best_range=best,
        channel_sqnr_db=best_db + 3, channel_largest=np.ones(8), codes_used=0.2 if layer == OUTLIERS else 0.95,
        clipped_share=0.1 if layer == CLIPPED else 0.0, calibrated_clipped_share=0.0, overflow_share=0.0,
        underflow_share=0.0, not_finite=0, edges=edges.astype(float), counts=counts.astype(float),
    )  # fmt: skip


def layer(name: str) -> LayerEvidence:
    fmt = FORMATS["fp16" if name == FLOAT else "int8"]
    reads = {
        OUTLIERS: ((-40.0, 40.0), 14.0, (-5.0, 5.0), 31.0), CLIPPED: ((-1.0, 1.0), 9.0, (-3.5, 3.5), 38.0),
        FLOAT: ((-65504.0, 65504.0), 70.0, (-65504.0, 65504.0), 70.0),
    }.get(name, ((-3.6, 3.6), 38.0, (-3.5, 3.5), 38.5))  # fmt: skip
    weight = WeightEvidence(name, fmt, np.inf if name == FLOAT else 36.0, 37.0, 30.0, np.ones(8), np.ones(8),
                            FORMATS["fp32"], (), ())  # fmt: skip
    output = OutputEvidence(name, min(reads[1], 33.0), 20.0, 36.0, reads[1], np.zeros(8), np.ones(8), np.ones(8),
                            np.zeros(8), 4.0, 0.0, 0.0, 0)  # fmt: skip
    read = operand(name, *reads)
    if name == FLOAT:
        read = OperandEvidence(**{**read.__dict__, "format": fmt})
    return LayerEvidence(name, Precision(fmt, fmt), (read,), weight, output)


def evidence() -> Evidence:
    layers = {name: layer(name) for name in NAMES}
    executed = Assignment.of({name: found.precision for name, found in layers.items()})
    return Evidence(Workload("net", (("x", (3, 8, 8)),), (), ()), executed, layers, (), 64)


def diagnosis() -> Diagnosis:
    clip = Suspicion(
        "activation-outliers", OUTLIERS, "gain_db", 17.0, 6.0, 0.04, f"{OUTLIERS} uses a fifth of its codes",
        Change((Repair("clip", OUTLIERS, 0),)), index=0,
    )  # fmt: skip
    gone = Suspicion("float-range", FLOAT, "overflow", 3.0, 0.0, np.inf, f"{FLOAT} overflows in fp16",
                     Change(raised=((FLOAT, Precision.parse("fp32")),)))  # fmt: skip
    slow = Suspicion("no-speedup", NAMES[0], "latency_share", 0.05, 0.01, 0.05, "its converts cost 12 us",
                     effect=Effect(latency_ms=0.012, latency_interval=Interval(0.006, 0.018), size_bytes=-1024),
                     layers=NAMES[:2])  # fmt: skip
    assert slow.effect is not None
    effect = Effect(2.0, Interval(0.5, 3.5), 0.03, Interval(0.02, 0.04), samples=256)
    return Diagnosis(
        (Finding(slow, slow.effect, "widen it"), Finding(clip, effect, "clip the range")), (gone,),
        Effect(2.5, Interval(0.5, 4.5), 0.04, Interval(0.02, 0.06), samples=256), effect, {OUTLIERS: 0.75}, 2560.0, 4.5,
    )  # fmt: skip
