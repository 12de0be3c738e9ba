"""Tells from FP32's logits which samples a candidate is most likely to answer differently."""

from __future__ import annotations

import numpy as np
import torch

from haq.accuracy import Scores
from haq.nn.metrics import METRICS, Metric, Outputs
from haq.quality import TOP1
from haq.racing import Plan, hardest_first, plan


def racing_plan(metric: Metric, fp32: Outputs) -> Plan:
    """In which order to measure a split: hard samples first where the metric counts, else at random.

    fp32: logits of the whole split.
    """
    count = sum(map(len, fp32.parts))
    if metric.direction == "minimize":
        # Loss and divergence change on every sample, so that no part of them can be left unmeasured with certainty.
        return plan(count, None)
    right = metric.function(fp32, fp32) == 1
    return plan(count, hardest_first(right, label_margins(fp32) if metric is METRICS[TOP1] else margins(fp32)))


def margins(fp32: Outputs) -> Scores:
    """(n,) the largest logit minus the second largest: how far the answer is from another one."""
    logits = torch.cat(fp32.parts).double()
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    top = logits.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).numpy()


def label_margins(fp32: Outputs) -> Scores:
    """(n,) how far the answer is from turning right or wrong: |logit of the label - largest of the others|."""
    logits, labels = torch.cat(fp32.parts).double(), torch.cat(fp32.labels).long()[:, None]
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    others = logits.scatter(1, labels, -torch.inf).amax(dim=1)
    return (logits.gather(1, labels)[:, 0] - others).abs().numpy()
