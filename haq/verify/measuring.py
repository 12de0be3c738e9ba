"""Runs an artifact and the simulation on the same samples, and collects what the gate judges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.exportable import Exportable
from haq.nn.metrics import METRICS, Outputs
from haq.nn.subset import cut_split
from haq.nn.task import HasOutputs, Inputs, Task, batch_size, first_samples, forward, logits_of
from haq.quality import AGREEMENT, LOSS, TOP1, main_metric
from haq.verify.artifact import Artifact, TellsMore
from haq.verify.evidence import Answers, Evidence, Latency
from haq.verify.numbers import Numbers, numbers

CHECKED_BATCHES = 4
"""Batches of calibration data whose outputs are compared where a task does not show the outputs on its splits."""


@dataclass(frozen=True)
class How:
    """split: on which accuracy is compared. samples: of it, None for all. repeats: timed inferences."""

    split: str
    repeats: int
    samples: int | None = None


def measure(artifact: Artifact, what: Exportable, how: How) -> Evidence:
    """The evidence on an artifact of `what`; raises InputError where the network comes without data."""
    if what.task is None:
        raise InputError("no data to measure accuracy on", where=what.workload.name, expected="--data")
    task = what.task if how.samples is None else cut_split(what.task, how.split, how.samples, where="--samples")
    sizes, tells = artifact.size_bytes(), artifact if isinstance(artifact, TellsMore) else None
    metrics = what.config.get("metrics", {})
    held = Numbers({}, {}) if tells is None else numbers(tells, what)
    return Evidence(
        file_bytes=sizes.file_bytes,
        initializer_bytes=sizes.initializer_bytes,
        promised_bytes=metrics["size_bytes"]["value"] if "size_bytes" in metrics else None,
        answers=_answers(artifact, what, task, how.split),
        asked=what.executed,
        realised=artifact.realised(),
        latency=_latency(artifact, what, task, how.repeats),
        arithmetic={} if tells is None else tells.arithmetic(),
        scales=held.scales,
        other_codes=held.other_codes,
        notes=() if tells is None else tells.notes(),
    )


class Running(nn.Module):
    """An artifact that is called as the network is, so that every task can score it."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self._artifact = artifact

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return torch.from_numpy(self._artifact.run(kwargs or args))


def _answers(artifact: Artifact, what: Exportable, task: Task, split: str) -> Answers:
    provenance, running, simulated = what.config.get("provenance", {}), Running(artifact), what.simulated()
    name = str(provenance.get("metric", task.metric))
    if not isinstance(task, HasOutputs):
        about = main_metric(name, provenance.get("direction", "maximize"), None)
        pair = task.scores(running, split), task.scores(simulated, split)
        return Answers(split, about, *pair, *_compared(_outputs(running, task), _outputs(simulated, task)))
    mine, other = task.outputs(running, split), task.outputs(simulated, split)
    if not mine.is_classification:
        about = main_metric(task.metric, "maximize", None)
        return Answers(
            split, about, task.scores(running, split), task.scores(simulated, split), *_compared(mine, other)
        )
    # A metric of the user's drives a search by code, which no config brings along.
    metric = METRICS.get(name, METRICS[TOP1])
    fp32 = other if metric.name in (TOP1, LOSS) else task.outputs(what.model, split)
    about = main_metric(metric.name, metric.direction, None)
    return Answers(split, about, metric.function(mine, fp32), metric.function(other, fp32), *_compared(mine, other))


def _compared(mine: Outputs, other: Outputs) -> tuple[float | None, float, float]:
    """Share of samples with the same largest output (None where that means nothing), largest error and output."""
    agreement = float(np.mean(METRICS[AGREEMENT].function(mine, other))) if mine.is_classification else None
    errors = [float((a - b).abs().max()) for a, b in zip(mine.parts, other.parts, strict=True)]
    # The largest of a NaN and a number must be the NaN.
    return agreement, float(np.max(errors)), float(np.max([float(part.abs().max()) for part in other.parts]))


def _outputs(model: nn.Module, task: Task) -> Outputs:
    """What the model answers on the first calibration batches, with labels that say nothing."""
    with torch.inference_mode():
        parts = [logits_of(forward(model, batch)).float() for batch in task.calibration()[:CHECKED_BATCHES]]
    return Outputs(tuple(parts), tuple(torch.zeros(len(part), dtype=torch.long) for part in parts))


def _latency(artifact: Artifact, what: Exportable, task: Task, repeats: int) -> Latency:
    target, metrics = what.config["target"], what.config.get("metrics", {})
    batch = int(target.get("batch", 1))
    times = artifact.latency_ms(_batch_of(task, batch), repeats)
    how = f"{artifact.runtime} on {artifact.machine}" if isinstance(artifact, TellsMore) else "this machine"
    modelled = metrics["latency_ms"]["value"] if "latency_ms" in metrics else None
    return Latency(times, batch, str(target["name"]), how, modelled)


def _batch_of(task: Task, batch: int) -> Inputs:
    """So many samples of the calibration data, the same again where there are too few."""
    inputs = first_samples(task.calibration()[0], batch)
    repeats = -(-batch // batch_size(inputs))
    if repeats == 1:
        return inputs
    if isinstance(inputs, dict):
        return first_samples({name: torch.cat([tensor] * repeats) for name, tensor in inputs.items()}, batch)
    return first_samples(tuple(torch.cat([tensor] * repeats) for tensor in inputs), batch)
