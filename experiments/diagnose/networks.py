"""Opens a network of the experiments in uniform precision, cuts its search split, and plants a case in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Case

from haq.diagnose.evidence import Evidence
from haq.diagnose.inject import inject
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.nn.bundle import Bundle, load_bundle
from haq.nn.diagnosis.bench import Samples, TorchBench, cut, open_bench
from haq.nn.diagnosis.subject import Subject, subject_of
from haq.nn.exportable import Exportable, exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.trace import trace
from haq.precision import Assignment, Precision
from haq.spacefile import load_space
from haq.techniques import DEFAULT_STACK

FORMATS = {"fp32": "fp32/fp32", "fp16": "fp16/fp16", "int8": "int8/int8"}


def config_of(
    bundle: Bundle, target: str, executed: Assignment, stack: tuple[str, ...] = DEFAULT_STACK
) -> dict[str, Any]:
    """A `haq.config/v1` of an assignment, with the default techniques unless told otherwise."""
    return {
        "schema": "haq.config/v1",
        "id": executed.signature[:12],
        "model": {"model": bundle.name, "weights_hash": bundle.weights_hash},
        "target": {"name": target},
        "layers": executed.to_json(),
        "quantization": {"ptq": list(stack), "observer": "mse"},
        "metrics": {},
        "provenance": {"data_hash": bundle.data_hash},
    }


@dataclass(frozen=True, eq=False)
class Network:
    """One space: its bundle, its int8 version, and the samples that are looked at and judged."""

    space: str
    bundle: Bundle
    what: Exportable
    subject: Subject
    samples: Samples


def open_network(space: str, judged: int) -> Network:
    """The default int8 version of a shipped network."""
    bundle = load_bundle(load_space(space))
    what = version(bundle, Precision.parse(FORMATS["int8"]))
    assert bundle.task is not None
    return Network(space, bundle, what, subject_of(what), cut(bundle.task, judged=judged))


def version(bundle: Bundle, precision: Precision, stack: tuple[str, ...] = DEFAULT_STACK) -> Exportable:
    """The network with one precision throughout; where a layer has no such form, what `reference` runs instead."""
    workload = trace(fold_batch_norm(bundle.model, bundle.example), bundle.example, name=bundle.name)
    asked = Assignment.uniform(workload.layer_names, precision)
    executed = legalize(workload, asked, load_profile("reference")).executed
    return exportable(config_of(bundle, "reference", executed, stack), bundle, Path("config.json"))


def planted(network: Network, case: Case) -> Subject:
    """The case's network; raises InputError where a fault cannot be planted."""
    subject = network.subject
    if case.base != "int8":
        subject = subject_of(version(network.bundle, Precision.parse(FORMATS[case.base])))
    for mode, layer, strength in zip(case.modes, case.layers, case.strengths, strict=True):
        subject = inject(subject, mode, layer, strength, case.seed)
    return subject


def bench_of(network: Network, subject: Subject) -> tuple[TorchBench, Evidence]:
    """What measures changes of the subject, on samples that nothing looks at, and what a look at others shows."""
    return open_bench(network.what, subject, network.samples)
