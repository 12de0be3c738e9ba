"""Watches a network inside a service: a random share of its calls, summarized and compared with calibration."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from haq.activations import Summary, summaries_of
from haq.config import Config
from haq.drift import DriftReport, Limits, compare_summaries
from haq.errors import InputError
from haq.nn.exportable import how_quantized
from haq.nn.instrument import is_instrumented
from haq.nn.listening import Call, listening
from haq.nn.summaries import Summarizer
from haq.techniques import STRUCTURE

SCHEMA = "haq.monitor/v1"


def monitor(
    model: nn.Module,
    config: Config | str | Path | Mapping[str, Any],
    sample: float = 0.01,
    *,
    seed: int | None = None,
    limits: Limits | None = None,
) -> Monitor:
    """A context manager that watches `model`, which serves as before: its outputs stay the same to the last bit.

    model: what `haq.load` returns, or the FP32 network that the config is of. config: one with `activations`, as
    `haq export` writes it. sample: the share of forward calls that are looked at, at random; a call that is not costs a
    hook per layer, one that is reads every operand a few times (measured in experiments/diagnose/monitor.csv). seed:
    of that choice.

        with haq.monitor(model, "config.json") as watch:
            serve(model)
        if watch.report().alarms: ...

    The chance of a false alarm (5 % unless `limits` says otherwise) is that of one report; look ten times at a growing
    monitor with a tenth of it. Raises InputError on a config without summaries, on a model without its layers, and on
    an FP32 model whose config restructures the network (cle, smoothquant), so that its operands are others.
    """
    return Monitor(model, config, sample, seed=seed, limits=limits or Limits())


class Monitor:
    """What `monitor` returns. It changes while the model runs; threads may share it."""

    def __init__(
        self,
        model: nn.Module,
        config: Config | str | Path | Mapping[str, Any],
        sample: float,
        *,
        seed: int | None,
        limits: Limits,
    ) -> None:
        if not 0 <= sample <= 1:
            raise InputError("not a share of calls", where="sample", got=sample, expected="0 to 1")
        chosen = Config.opened(config)
        content = chosen.content
        self._id, self._limits = chosen.id, limits
        self._calibrated = summaries_of(content, str(chosen))
        self._is_fp32 = not is_instrumented(model) and any(layer != "fp32/fp32" for layer in content["layers"].values())
        if self._is_fp32 and (names := STRUCTURE.intersection(how_quantized(content).stack.names)):
            raise InputError(
                "the config's network is restructured, so the FP32 network has other operands", where=str(chosen),
                got=", ".join(sorted(names)), expected="the model that haq.load returns",
            )  # fmt: skip
        self._model, self._sample, self._random = model, sample, random.Random(seed)
        self._ear = _Sampled(self, {key: s.covers for key, s in self._calibrated.items() if s.covers is not None})
        self._stack = ExitStack()

    def __enter__(self) -> Monitor:
        layers = {key.rpartition(":")[0] for key in self._calibrated}
        self._stack.enter_context(listening(self._model, layers, self._ear))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def inputs(self) -> int:
        """How many samples were looked at."""
        return max((summary.inputs for summary in self._ear.copied().values()), default=0)

    def report(self) -> DriftReport:
        """The verdict of `haq check` on what was served so far, but for the agreement with FP32."""
        seen = self._ear.copied()
        inputs = max((summary.inputs for summary in seen.values()), default=0)
        return compare_summaries(self._calibrated, seen, inputs, self._limits, is_fp32=self._is_fp32)

    def merge(self, other: Monitor | Mapping[str, Any]) -> None:
        """Add what another monitor of the same config saw, in this process or, as its `to_json`, in another one.

        Raises InputError on one of another config, or of FP32 where this one is of the quantized network.
        """
        raw = other.to_json() if isinstance(other, Monitor) else other
        if raw.get("schema") != SCHEMA or (raw["config"], raw["is_fp32"]) != (self._id, self._is_fp32):
            raise InputError(
                "not a monitor of the same network", where="merge", got=f"{raw.get('schema')} of {raw.get('config')}",
                expected=f"{SCHEMA} of {self._id}, " + ("FP32" if self._is_fp32 else "quantized"),
            )  # fmt: skip
        self._ear.merge({key: Summary.from_json(part, f"merge: {key}") for key, part in raw["activations"].items()})

    def to_json(self) -> dict[str, Any]:
        """What was seen, to be merged or kept, with the verdict on it."""
        seen = {key: summary.to_json() for key, summary in self._ear.copied().items() if summary.numbers}
        return {
            "schema": SCHEMA, "config": self._id, "is_fp32": self._is_fp32, "activations": seen,
            "report": self.report().to_json(),
        }  # fmt: skip

    def chooses(self) -> bool:
        """Whether the next call is looked at."""
        return self._random.random() < self._sample


class _Sampled:
    """The ear of a monitor: a Summarizer of the calls that the monitor chooses."""

    def __init__(self, owner: Monitor, covers: Mapping[str, tuple[float, float]]) -> None:
        self._owner, self._summarizer = owner, Summarizer(covers)
        self.copied, self.merge = self._summarizer.copied, self._summarizer.merge

    def wants(self) -> bool:
        return self._owner.chooses()

    def hear(self, call: Call, layer: str, index: int, x: Any) -> None:
        self._summarizer.hear(call, layer, index, x)
