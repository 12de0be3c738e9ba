"""The search spec: the field's six-part template, constraint first, from TOML and flags, and the brief it reads as.

The six sections are scope, hardware, accuracy, latency, recovery and deployment; a seventh, search, says how it is run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator

from haq.constraints import Constraints
from haq.errors import InputError
from haq.precision import BIT_WIDTHS
from haq.quality import Direction
from haq.references import check_reference
from haq.techniques import DEFAULT_STACK, parse_stack
from haq.validation import load_toml, validate

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _limits(value: Any) -> float | dict[str, float]:
    """A limit, or a table of them; raises ValueError on anything else than finite numbers >= 0."""
    table = value if isinstance(value, dict) else {"": value}
    for number in table.values():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
            raise ValueError("a number >= 0, or a table of target = number")
    return {str(target): float(number) for target, number in value.items()} if isinstance(value, dict) else float(value)


PerTarget = Annotated[float | dict[str, float], PlainValidator(_limits)]
"""One limit for every target, or a table from target to limit."""

BYTES_PER_MB = 1_000_000
EXPORT_FORMATS = ("json", "onnx-qdq", "litert", "qwix", "modelopt", "torchao")
"""What a run can be handed over as: the formats of `haq export`; `json` is the canonical haq.config/v1."""


MOST_TRIALS = 500
"""Where a search ends that was asked to go on until it converges."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scope(_Section):
    """What is searched. space: a search space's name or TOML path; model: the user's own `package.module:factory`.

    granularity: what shares one bit-width; pins: layer pattern -> bit-width that is not searched. grouping: whether
    layers that a device treats alike share one too (`haq.grouping`), where rules and pins let them.
    weights, data: files or folders that the space's loader reads.
    """

    space: str
    model: str | None = None
    weights: str | None = None
    data: str | None = None
    granularity: Literal["model", "block", "layer"] = "layer"
    grouping: Literal["natural", "none"] = "natural"
    pins: dict[str, Literal[4, 8, 16, 32]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _model_may_name_a_space(cls, raw: Any) -> Any:
        """The template says `model = "resnet18"`: a model without a colon is a space's name, not a factory."""
        if isinstance(raw, Mapping) and "space" not in raw and ":" not in str(raw.get("model", ":")):
            return {**{k: v for k, v in raw.items() if k != "model"}, "space": raw["model"]}
        return raw


class Hardware(_Section):
    """Where it must run. batch: samples per inference, which every latency is for."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    batch: Annotated[int, Field(ge=1)] = 1

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(targets))


class Accuracy(_Section):
    """How much accuracy may be given away, in points of 100 x (FP32 - candidate), and on what it is measured.

    metric: what drives the search, where it is not the task's own: one of haq's, `package.module:metric`, or the name
    that the user's function gives it. direction: which way it is better where it does not say so itself (maximize), or
    a table from names to directions; of a minimized metric the drop is 100 x (candidate - FP32).
    max_class_drop_points: of the class that loses most top-1 accuracy; max_kl_nats, min_agreement: from and with FP32.
    samples: at most so many of the search split (all, if unset). observer: how activation ranges are calibrated.
    ptq: the post-training techniques that every candidate is quantized with, applied in haq's order.
    """

    max_drop_points: NotNegative | None = None
    max_class_drop_points: NotNegative | None = None
    max_kl_nats: NotNegative | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    metric: str | None = None
    direction: Direction | dict[str, Direction] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    observer: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    ptq: Annotated[tuple[str, ...], AfterValidator(parse_stack)] = DEFAULT_STACK

    @field_validator("metric")
    @classmethod
    def _names_code_or_a_metric(cls, metric: str | None) -> str | None:
        if metric is not None and not metric.strip():
            raise ValueError("the name of a metric, or package.module:metric")
        return metric if metric is None or ":" not in metric else check_reference(metric)

    @property
    def is_metric_external(self) -> bool:
        """Whether the metric is code of the user's, which no run directory may load by itself."""
        return self.metric is not None and ":" in self.metric


class Latency(_Section):
    """Limits per batch; max_rise_ms is over the legalized FP32 model on the same target."""

    max_ms: PerTarget | None = None
    max_rise_ms: PerTarget | None = None


class Recovery(_Section):
    """How accuracy is bought back. order: the rungs of the fallback, narrowest first.

    reserve_points: part of max_drop_points that the search leaves unused, for what deployment still costs.
    """

    order: tuple[int, ...] = BIT_WIDTHS
    reserve_points: NotNegative = 0.0

    @field_validator("order")
    @classmethod
    def _climbs(cls, order: tuple[int, ...]) -> tuple[int, ...]:
        if not order or list(order) != sorted(set(order)) or not set(order) <= set(BIT_WIDTHS):
            raise ValueError("some of 4, 8, 16, 32 in increasing order")
        return order


class Deployment(_Section):
    """What is shipped, and within which limits. MB = 10^6 bytes; max_memory_mb bounds the peak of the activations."""

    kind: Literal["mobile", "server"] | None = None
    max_size_mb: PerTarget | None = None
    max_memory_mb: PerTarget | None = None
    max_energy_mj: PerTarget | None = None
    formats: tuple[str, ...] = ("json",)

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if not set(formats) <= set(EXPORT_FORMATS):
            raise ValueError(f"some of {', '.join(EXPORT_FORMATS)}")
        return formats


class Search(_Section):
    """How the search is run. storage: `sqlite` in the run directory, `none`, or an Optuna URL.

    trials: candidates to measure, 64 unless said, or up to 500 until_converged: then the search ends when no target's
    hypervolume has grown beyond the noise for a while. sampler: `haq` measures sensitivities first; the others are
    Optuna's alone.
    racing: whether a candidate's measurement is stopped once it is beaten or over a limit, where the task allows it.
    """

    trials: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0)] = 0
    sampler: Literal["haq", "tpe", "nsga2", "nsga3", "gp", "qmc", "random"] = "haq"
    timeout_s: Positive | None = None
    until_converged: bool = False
    storage: str = "sqlite"
    racing: bool = True

    @model_validator(mode="before")
    @classmethod
    def _room_to_converge(cls, raw: Any) -> Any:
        """A search that ends by itself gets more trials than one that ends by their number."""
        if isinstance(raw, Mapping) and raw.get("until_converged") and "trials" not in raw:
            return {**raw, "trials": MOST_TRIALS}
        return raw


class Spec(_Section):
    """One search, as asked: what a reviewer reads before it runs, and what `run.json` keeps."""

    scope: Scope
    hardware: Hardware
    accuracy: Accuracy = Accuracy()
    latency: Latency = Latency()
    recovery: Recovery = Recovery()
    deployment: Deployment = Deployment()
    search: Search = Search()

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Spec:
        allowed = self.accuracy.max_drop_points
        if self.recovery.reserve_points and (allowed is None or self.recovery.reserve_points >= allowed):
            raise ValueError("recovery.reserve_points below accuracy.max_drop_points, of which it is a part")
        for section, key in _PER_TARGET:
            limit = getattr(getattr(self, section), key)
            for target in limit if isinstance(limit, dict) else ():
                if target not in self.hardware.targets:
                    raise ValueError(f"hardware.targets to hold {target!r}, which {section}.{key} limits")
        return self

    def constraints(self, target: str) -> Constraints:
        """The limits on one target, in the units of the cost model (bytes, ms, points); reserve_points taken off."""
        limits = {f"{section}.{key}": self._limit(section, key, target) for section, key in _PER_TARGET}
        accuracy, drop = self.accuracy, self.accuracy.max_drop_points
        size_mb, memory_mb = limits["deployment.max_size_mb"], limits["deployment.max_memory_mb"]
        return Constraints(
            max_drop_points=None if drop is None else drop - self.recovery.reserve_points,
            max_class_drop_points=accuracy.max_class_drop_points,
            max_kl_nats=accuracy.max_kl_nats,
            max_disagreement=None if accuracy.min_agreement is None else 1 - accuracy.min_agreement,
            max_latency_ms=limits["latency.max_ms"],
            max_latency_rise_ms=limits["latency.max_rise_ms"],
            max_size_bytes=None if size_mb is None else size_mb * BYTES_PER_MB,
            max_memory_bytes=None if memory_mb is None else memory_mb * BYTES_PER_MB,
            max_energy_mj=limits["deployment.max_energy_mj"],
        )

    def _limit(self, section: str, key: str, target: str) -> float | None:
        limit: float | dict[str, float] | None = getattr(getattr(self, section), key)
        return limit.get(target) if isinstance(limit, dict) else limit

    def to_json(self) -> dict[str, Any]:
        """The resolved spec, sections in order; keys that are not set are left out. `spec_of_run` reads it back."""
        raw = self.model_dump(mode="json", exclude_none=True)
        if not self.search.racing:
            del raw["search"]["racing"]  # so that runs of before racing, which did without, are the same search
        return raw


_PER_TARGET = (
    ("latency", "max_ms"),
    ("latency", "max_rise_ms"),
    ("deployment", "max_size_mb"),
    ("deployment", "max_memory_mb"),
    ("deployment", "max_energy_mj"),
)


def load_spec(path: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> Spec:
    """The spec of a TOML file (or of flags alone), with flags over the file's keys.

    flags: section -> key -> value, only those that were given. Raises InputError that names file and key.
    A space, weights or data path in the file is relative to the file, as a reader of it expects.
    """
    raw: dict[str, dict[str, Any]] = {}
    if path is not None:
        raw = load_toml(path)
        _resolve_paths(raw, path.resolve().parent)
    where = str(path) if path is not None else "command line"
    merged = dict(raw)
    for section, values in flags.items():
        if not isinstance(merged.get(section, {}), dict):
            raise InputError(f"{section} is not a section", where=where, got=merged[section], expected=f"[{section}]")
        merged[section] = {**merged.get(section, {}), **values}
    return spec_from(merged, where=where)


def spec_from(raw: Mapping[str, Any], *, where: str) -> Spec:
    """The spec of plain tables; raises InputError that names `where` and the key."""
    return validate(Spec, raw, where=where)


def spec_of_run(raw: Mapping[str, Any], *, where: str) -> Spec:
    """The spec that a `run.json` holds, as `Spec.to_json` wrote it; without the key, the run did not race."""
    return spec_from({**raw, "search": {"racing": False, **raw.get("search", {})}}, where=where)


def _resolve_paths(raw: Mapping[str, Any], folder: Path) -> None:
    """Make the file-like values of [scope] absolute where they exist beside the spec; names stay names."""
    scope = raw.get("scope")
    if not isinstance(scope, dict):
        return
    for key in ("space", "model", "weights", "data"):
        value = scope.get(key)
        if isinstance(value, str) and (key in ("weights", "data") or value.endswith(".toml") or "/" in value):
            scope[key] = str(folder / value)
