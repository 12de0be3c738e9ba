"""Metrics of a classifier's logits against labels and FP32's logits: the registry, and the report read off one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.accuracy import Scores
from haq.errors import InputError
from haq.quality import (
    AGREEMENT,
    DIRECTIONS,
    KL,
    LOSS,
    TOP1,
    WORST_CLASS,
    ClassDrops,
    Direction,
    Quality,
    QualityReport,
)

AT_ONCE = 4096
"""Samples whose logits are in float64 at a time: 33 MB of them for a thousand classes."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model answered on a split, batch by batch, on the CPU.

    parts: outputs whose first axis is the samples, (n, classes) logits of a classifier; labels: the same for what is
    right. class_names: in the order of the logits, empty when unknown.
    """

    parts: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    class_names: tuple[str, ...] = ()

    def taken(self, samples: NDArray[np.intp]) -> Outputs:
        """Those of the samples with these numbers, from 0, in their order."""
        rows = torch.from_numpy(samples)
        return Outputs((torch.cat(self.parts)[rows],), (torch.cat(self.labels)[rows],), self.class_names)

    @property
    def is_classification(self) -> bool:
        """Whether every part is (n, classes) logits for (n,) integer labels of these classes."""
        return all(map(_fit, self.parts, self.labels)) and len({part.shape[1] for part in self.parts}) == 1


@dataclass(frozen=True)
class Metric:
    """One figure of a split. function: (outputs, FP32's outputs) -> one score per sample, NaN where it is undefined."""

    name: str
    direction: Direction
    function: Callable[[Outputs, Outputs], Scores]


def right(outputs: Outputs, fp32: Outputs) -> Scores:
    """1.0 where the largest logit is the label's; a sample with logits that are not finite is wrong, never lucky."""
    return _per_sample(
        lambda logits, labels: (logits.argmax(dim=1) == labels) & _finite(logits), outputs.parts, outputs.labels
    )


def cross_entropy(outputs: Outputs, fp32: Outputs) -> Scores:
    """-log softmax(logits)[label] in nats; NaN where logits are not finite."""
    return _per_sample(
        lambda logits, labels: -_log_chances(logits).gather(1, labels.long()[:, None])[:, 0],
        outputs.parts,
        outputs.labels,
    )


def kl_from_fp32(outputs: Outputs, fp32: Outputs) -> Scores:
    """KL(FP32 || candidate) = sum p (log p - log q) in nats (Kullback and Leibler 1951); NaN where it is undefined."""

    def divergence(logits: Tensor, reference: Tensor) -> Tensor:
        log_q, log_p = _log_chances(logits), _log_chances(reference)
        # It is never negative, but its rounding error is.
        return (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp(min=0)

    return _per_sample(divergence, outputs.parts, fp32.parts)


def agreement(outputs: Outputs, fp32: Outputs) -> Scores:
    """1.0 where the largest logit is FP32's; 0.0 where either has logits that are not finite."""
    return _per_sample(
        lambda a, b: (a.argmax(dim=1) == b.argmax(dim=1)) & _finite(a) & _finite(b), outputs.parts, fp32.parts
    )


METRICS: dict[str, Metric] = {
    TOP1: Metric(TOP1, DIRECTIONS[TOP1], right),
    LOSS: Metric(LOSS, DIRECTIONS[LOSS], cross_entropy),
    KL: Metric(KL, DIRECTIONS[KL], kl_from_fp32),
    AGREEMENT: Metric(AGREEMENT, DIRECTIONS[AGREEMENT], agreement),
}


def all_scores(outputs: Outputs, fp32: Outputs) -> dict[str, Scores]:
    """Every metric of METRICS, from outputs of the same samples in the same order."""
    return {name: metric.function(outputs, fp32) for name, metric in METRICS.items()}


def report(
    scores: Mapping[str, Scores], outputs: Outputs, fp32: Outputs, weights: Scores | None = None
) -> QualityReport:
    """The means of `all_scores`, and the drop per class.

    weights: (n,) how many samples of a split each one stands for, where they are no plain sample of it.
    """
    figures = [Quality(name, METRICS[name].direction, _mean(values, weights)) for name, values in scores.items()]
    classes = class_drops(scores[TOP1], right(fp32, fp32), outputs, weights)
    return QualityReport(
        (*figures, Quality(WORST_CLASS, "minimize", classes.worst_points)), classes, int(not_finite(outputs).sum())
    )


def class_drops(scores: Scores, fp32_scores: Scores, outputs: Outputs, weights: Scores | None = None) -> ClassDrops:
    """How many points of top-1 accuracy each class lost against FP32; weights as in `report`."""
    each = np.ones(len(scores)) if weights is None else weights
    labels = torch.cat(outputs.labels).numpy()
    count = outputs.parts[0].shape[1]
    samples = np.bincount(labels, minlength=count)
    lost = np.bincount(labels, weights=each * (fp32_scores - scores), minlength=count)
    stands_for = np.bincount(labels, weights=each, minlength=count)
    points = tuple(100 * float(lost[i]) / float(stands_for[i]) if samples[i] else None for i in range(count))
    worst = max((i for i in range(count) if samples[i]), key=lambda i: points[i] or 0.0)
    name = outputs.class_names[worst] if outputs.class_names else str(worst)
    return ClassDrops(points, name, int(samples[worst]))


def not_finite(outputs: Outputs) -> NDArray[np.bool_]:
    """(n,) whether a sample's outputs hold a NaN or an infinity, as after an overflow of fp16."""
    return np.concatenate(
        [~_finite(part.flatten(1) if part.dim() > 1 else part[:, None]).numpy() for part in outputs.parts]
    )


def check_classification(outputs: Outputs, split: str) -> None:
    """Raise InputError unless the outputs are logits that fit the labels."""
    if outputs.is_classification:
        return
    pairs = zip(outputs.parts, outputs.labels, strict=True)
    logits, labels = next((pair for pair in pairs if not _fit(*pair)), (outputs.parts[-1], outputs.labels[-1]))
    shaped = logits.dim() == 2 and tuple(labels.shape) == (len(logits),)
    raise InputError(
        "the logits do not fit the labels",
        where=f"split {split!r}",
        got=f"{tuple(logits.shape)} logits, {tuple(labels.shape)} labels"
        + (f" of {labels.dtype} from {labels.min().item()} to {labels.max().item()}" if shaped else ""),
        expected=f"({len(labels)}, classes) logits, one class number per sample as its label",
    )


def _fit(logits: Tensor, labels: Tensor) -> bool:
    if logits.dim() != 2 or tuple(labels.shape) != (len(logits),) or labels.is_floating_point():
        return False
    return bool(((labels >= 0) & (labels < logits.shape[1])).all())


def _per_sample(
    function: Callable[[Tensor, Tensor], Tensor], first: tuple[Tensor, ...], second: tuple[Tensor, ...]
) -> Scores:
    """Many samples at a time, since small tensors cost more than their arithmetic, but not a large split in float64."""
    parts = zip(torch.split(torch.cat(first), AT_ONCE), torch.split(torch.cat(second), AT_ONCE), strict=True)
    return torch.cat([function(a, b).double() for a, b in parts]).numpy()


def _log_chances(logits: Tensor) -> Tensor:
    """log softmax in float64 (in float32 the divergence of fp16 drowns in rounding); NaN rows where not finite."""
    return torch.where(_finite(logits)[:, None], logits.double(), torch.nan).log_softmax(dim=1)


def _finite(logits: Tensor) -> Tensor:
    return logits.isfinite().all(dim=1)


def _mean(scores: Scores, weights: Scores | None) -> float | None:
    """The mean, unknown where one of the scores is."""
    mean = float(np.mean(scores) if weights is None else np.average(scores, weights=weights))
    return mean if np.isfinite(mean) else None
