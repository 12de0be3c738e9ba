"""The verb that checks served data: compares them with a config's summaries, and quantized answers with FP32's.

torch is imported inside, so that importing this module stays light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haq.accuracy import Z95, Interval, mean_interval
from haq.activations import summaries_of
from haq.config import Config
from haq.drift import DriftReport, Limits, compare_summaries
from haq.errors import InputError
from haq.spacefile import space_of_config


@dataclass(frozen=True)
class Agreement:
    """Quantized answers against FP32's on the same samples, without labels.

    disagreement: the share of samples with another class, and its 95 % interval (Wilson). Accuracy cannot have fallen
    by more than this share. kl_nats: mean KL(FP32 || quantized) with its 95 % interval (normal); absent where some
    answer is not finite.
    """

    samples: int
    disagreement: float
    interval: Interval
    kl_nats: float | None
    kl_interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "samples": self.samples, "disagreement_points": 100 * self.disagreement,
            "disagreement_interval": _ends(self.interval, 100),
        }  # fmt: skip
        if self.kl_nats is not None:
            known["kl_nats"] = self.kl_nats
        if self.kl_interval is not None:
            known["kl_interval"] = _ends(self.kl_interval, 1)
        return known


@dataclass(frozen=True)
class Checked:
    """drift: the verdict on the layers' inputs. agreement: absent where the network's outputs are no logits."""

    config: Mapping[str, Any]
    drift: DriftReport
    agreement: Agreement | None

    @property
    def faults(self) -> tuple[str, ...]:
        """What is beyond a limit, one sentence each; empty where nothing is."""
        found = [_fault(operand, self.drift.limits) for operand in self.drift.alarms]
        limit = self.drift.limits.disagreement
        if limit is not None and self.agreement is not None and self.agreement.disagreement > limit:
            found.append(
                f"{100 * self.agreement.disagreement:.2f} % of the answers are not FP32's, limit {100 * limit:g}"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        known = {
            "config": self.config["id"], "target": self.config["target"]["name"], "passed": not self.faults,
            "faults": list(self.faults), **self.drift.to_json(),
        }  # fmt: skip
        return known if self.agreement is None else {**known, "agreement": self.agreement.to_json()}


def check(config: Path, data: Path, given: Mapping[str, str], limits: Limits) -> Checked:
    """The verdict on served data, without labels.

    data: see `haq.nn.served.served_data`. given: `space`, `model`, `weights`, as for `haq export`, and `data`: what the
    search was given as its data, where it was given any. Raises InputError on wrong input: a config without summaries,
    data that do not fit, and fewer samples than the limits take.
    """
    from haq.nn.beside import Beside
    from haq.nn.bundle import load_bundle
    from haq.nn.exportable import exportable
    from haq.nn.listening import listening
    from haq.nn.served import described, served_data
    from haq.nn.summaries import Summarizer

    opened = Config.load(config)
    content = opened.content
    calibrated = summaries_of(content, str(config))
    space = space_of_config(content, given.get("space"), where=str(config))
    if space.data.task is None and "data" not in given:
        raise InputError(
            "the network was calibrated on data of yours, which are needed again", where=str(config),
            expected="--calibration-data DIR, what the search had as --data",
        )  # fmt: skip
    weights = given.get("weights")
    # Cheap failures first: the data are opened before a network is loaded.
    show = served_data(space, data, None if weights is None else Path(weights))
    bundle = load_bundle(space, weights=weights, data=given.get("data"), model=given.get("model"))
    what = exportable(content, bundle, config)
    ear = Summarizer({key: summary.covers for key, summary in calibrated.items() if summary.covers is not None})
    both = Beside(what.simulated(), what.model, described(space.model.inputs))
    with listening(both.quantized, {key.rpartition(":")[0] for key in calibrated}, ear):
        show(both)
    report = compare_summaries(calibrated, ear.summaries, both.samples, limits, is_fp32=False)
    _check_enough(report, str(data))
    return Checked(content, report, _agreement(both.agrees, both.divergence, limits))


def samples_needed(limit: float) -> int:
    """How many samples it takes before no disagreement at all shows, at 95 %, that the share is below the limit.

    Wilson's upper end at 0 of n is z^2 / (n + z^2).
    """
    return math.floor(Z95**2 * (1 - limit) / limit) + 1 if limit > 0 else 1


def _check_enough(report: DriftReport, where: str) -> None:
    limits = report.limits
    needed = max(report.needed_inputs, 1 if limits.disagreement is None else samples_needed(limits.disagreement))
    if report.inputs >= needed:
        return
    if not report.inputs:
        raise InputError("no samples", where=where, got=0, expected=f"at least {needed}")
    by_drift = report.needed_inputs == needed
    raise InputError(
        "too few samples to see the limit", where=where, got=report.inputs, expected=f"at least {needed} samples",
        way_out="a drift of half of all inputs would not show in fewer" if by_drift
        else f"{100 * (limits.disagreement or 0):g} points of disagreement cannot be told from none in fewer",
    )  # fmt: skip


def _agreement(agrees: list[Any], divergence: list[Any], limits: Limits) -> Agreement | None:
    if not agrees:
        if limits.disagreement is not None:
            raise InputError(
                "the network's answers are no classes, so there is no agreement to limit",
                where="--max-disagreement-points", expected="logits of (samples, classes)",
            )  # fmt: skip
        return None
    differs, nats = 1.0 - np.concatenate(agrees), np.concatenate(divergence)
    is_finite = bool(np.isfinite(nats).all())
    return Agreement(
        len(differs), float(differs.mean()), mean_interval(differs), float(nats.mean()) if is_finite else None,
        mean_interval(nats, is_continuous=True) if is_finite and len(nats) > 1 else None,
    )  # fmt: skip


def _fault(operand: Any, limits: Limits) -> str:
    where = f"{operand.layer}, operand {operand.index}"
    if operand.not_finite:
        return f"{where}: {operand.not_finite} of {operand.inputs} inputs hold numbers that are not finite"
    if operand.clips:
        return (
            f"{where}: {100 * operand.clipped_share:.2f} % of its numbers are clipped, in calibration "
            f"{100 * operand.calibrated_clipped_share:.2f} %, limit {100 * limits.clipped_share:g} above that"
        )
    return f"{where}: not what it was calibrated on (p = {operand.p_value:.1g}, corrected)"


def _ends(interval: Interval, factor: float) -> dict[str, float]:
    return {"low": factor * interval.low, "high": factor * interval.high}
