"""Measures changes of a network under diagnosis on samples that no statistic has looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from haq.diagnose.evidence import Evidence
from haq.diagnose.finding import Change, Outcome, Repair
from haq.errors import InputError
from haq.history import SEARCH
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.raising import Raiser
from haq.nn.diagnosis.repairs import Look, repaired
from haq.nn.diagnosis.subject import Subject
from haq.nn.exportable import Exportable, how_quantized
from haq.nn.metrics import Outputs, kl_from_fp32, not_finite, right
from haq.nn.subset import spread_rows
from haq.nn.task import CallableTask, ClassificationTask, HasOutputs, Inputs, Task, regrouped
from haq.precision import FP32, Precision

LOOKED = 64
"""Samples that statistics and repairs are made from: as many as sensitivities take."""

RANGES, WEIGHTS = ("clip", "recalibrate", "equalize"), ("per_channel", "rescale", "bias")
"""Kinds of repairs of what a layer reads, and of its weight with its bias."""

JUDGED = 256
"""Samples that changes are measured on, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Served data, cut in two. looked: inputs alone, for statistics and repairs; judged: a task with the others."""

    looked: tuple[Inputs, ...]
    judged: Task
    split: str
    size: int


def cut(task: Task, split: str = SEARCH, looked: int = LOOKED, judged: int = JUDGED) -> Samples:
    """Every n-th sample of a split to look at, and others, spread alike, to judge on.

    A task that measures by itself shows no inputs: its calibration data is looked at, and the whole split judged.
    Raises InputError on fewer than two samples.
    """
    if not isinstance(task, ClassificationTask):
        seen, _ = spread_rows(tuple(task.calibration()), (), looked, looked)
        return Samples(seen, task, split, 0)
    total = sum(len(batch.labels) for batch in task.splits[split])
    if total < 2:
        raise InputError(
            "too few samples to look at some and judge on others", where=f"split {split!r}", got=total,
            expected="at least two", way_out="give more data",
        )  # fmt: skip
    shown = min(looked, total // 2)
    rows = [place * total // shown for place in range(shown)]
    others = sorted(set(range(total)).difference(rows))
    size = min(judged, len(others))
    chosen = [others[place * len(others) // size] for place in range(size)]
    looked_at, _ = regrouped(task.splits[split], np.array(rows))
    judging, _ = regrouped(task.splits[split], np.array(chosen))
    judges = ClassificationTask({split: judging}, (), task.data_hash)
    return Samples(tuple(batch.inputs for batch in looked_at), judges, split, size)


class TorchBench:
    """The bench of one subject. It changes as it is used: what was measured is kept."""

    def __init__(self, subject: Subject, samples: Samples, look: Look, raiser: Raiser) -> None:
        self.subject, self._samples, self._look, self._raise = subject, samples, look, raiser
        self._fp32: tuple[Outputs | None, Outcome] | None = None
        self._kept: dict[Change, Outcome] = {}
        self._subjects: dict[Change, Subject] = {}
        self._forwards = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        return self.subject.workload.layer_names

    @property
    def samples(self) -> int:
        return self._samples.size

    @property
    def forwards(self) -> float:
        return self._forwards

    def widest(self, layer: str) -> Precision:
        return FP32

    def fp32(self) -> Outcome:
        return self._reference()[1]

    def measure(self, change: Change) -> Outcome:
        key = self._normal(change)
        if key not in self._kept:
            self._kept[key] = self._judged(self.changed(key).build(), self._reference()[0])[1]
        return self._kept[key]

    def changed(self, change: Change) -> Subject:
        """The subject with the change: raised first, since what no longer rounds needs no repair."""
        key = self._normal(change)
        if key not in self._subjects:
            subject = self._raise(self.subject, dict(key.raised))
            needed = tuple(repair for repair in key.repairs if self._is_needed(repair, dict(key.raised)))
            self._subjects[key] = repaired(subject, Change(needed), self._look)
        return self._subjects[key]

    def _normal(self, change: Change) -> Change:
        """Equal changes alike: raised layers in the network's order, those that stay as they are left out."""
        raised = dict(change.raised)
        differing = tuple(
            (layer, raised[layer]) for layer in self.layers if layer in raised and raised[layer] != self._here(layer)
        )
        return Change(change.repairs, differing)

    def _is_needed(self, repair: Repair, raised: Mapping[str, Precision]) -> bool:
        """Whether there still is what the repair is for: a raised layer has a range or a weight of its own no more."""
        now = raised.get(repair.layer)
        if now is None:
            return True
        if repair.kind in RANGES:
            return now.activation.is_integer and not now.activation.per_token
        return repair.kind not in WEIGHTS or now.weight == self._here(repair.layer).weight

    def _here(self, layer: str) -> Precision:
        return self.subject.executed.precision(layer)

    def _reference(self) -> tuple[Outputs | None, Outcome]:
        if self._fp32 is None:
            self._fp32 = self._judged(self.subject.model, None)
            if (kl := self._fp32[1].kl) is not None and not np.isfinite(kl).all():
                raise InputError(
                    "the network's outputs are not finite in FP32", where=self.subject.workload.name,
                    got=f"{int((~np.isfinite(kl)).sum())} of {len(kl)} samples", expected="finite outputs",
                    way_out="a broken network cannot be diagnosed: look at its weights and data first",
                )  # fmt: skip
        return self._fp32

    def _judged(self, model: nn.Module, fp32: Outputs | None) -> tuple[Outputs | None, Outcome]:
        task, split = self._samples.judged, self._samples.split
        self._forwards += self._samples.size
        if isinstance(task, CallableTask) or not isinstance(task, HasOutputs):
            scores = task.scores(model, split)
            shown = scores if isinstance(scores, np.ndarray) else None
            return None, Outcome(None, shown, float(np.mean(scores)))
        outputs = task.outputs(model, split)
        scores = right(outputs, outputs)
        kl = kl_from_fp32(outputs, fp32 if fp32 is not None else outputs)
        kl = np.where(np.isnan(kl) | not_finite(outputs), np.inf, kl)
        return outputs, Outcome(kl, scores, float(scores.mean()))


def open_bench(
    what: Exportable, subject: Subject, data: Samples, evidence: Evidence | None = None
) -> tuple[TorchBench, Evidence]:
    """The bench of a config's network, and what a look at it shows, unless that is known already.

    subject: as `subject_of(what)` or with faults of its own. data: as `cut` cuts the config's task.
    """
    assert what.task is not None, "a network without data cannot be diagnosed"
    seen = look(subject, data.looked) if evidence is None else evidence
    ranges = what.calibration if subject.model is what.model else None
    raiser = Raiser(subject, tuple(what.task.calibration()), how_quantized(what.config), ranges)
    return TorchBench(subject, data, Look(data.looked, seen), raiser), seen
