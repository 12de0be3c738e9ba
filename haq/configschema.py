"""What a `haq.config/v1` file may hold; its JSON Schema is committed as `haq/schemas/haq.config-v1.json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from haq.precision import FORMATS
from haq.techniques import TECHNIQUES

SCHEMA = "haq.config/v1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_WEIGHTS = "|".join(name for name, fmt in FORMATS.items() if not fmt.per_token)
_ACTIVATIONS = "|".join(name for name, fmt in FORMATS.items() if fmt.group is None)

PrecisionText = Annotated[str, StringConstraints(pattern=f"^({_WEIGHTS})/({_ACTIVATIONS})$")]
"""Weight format / activation format."""

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\]+\.safetensors$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Layer = Text
Technique = Annotated[str, StringConstraints(pattern=f"^({'|'.join(TECHNIQUES)})$")]
Bits = Literal[4, 8, 16, 32]
Count = Annotated[int, Field(ge=0)]


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _absent(value: Any) -> Any:
    """A key that may be left out: what is unknown is absent, never null. The value stands for it inside Python only."""
    return Field(default=value, json_schema_extra=_no_default)


class _Part(BaseModel):
    """An object without other keys; numbers are numbers, not texts that read like some."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Open(BaseModel):
    """An object that may hold more than what is named."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class Network(_Part):
    """Which network, by the name of its space or class, and the SHA-256 of its state dict before folding."""

    model: Text
    weights_hash: Sha256 = _absent("")


class TargetPart(_Part):
    """What the config is for, and how far its modelled latency can be trusted (relative error, 0.5 is +-50 %)."""

    name: Text
    batch: Annotated[int, Field(ge=1)] = _absent(1)
    title: str = _absent("")
    confidence: str = _absent("")
    latency_spread: Annotated[float, Field(ge=0)] = _absent(0.0)


class Quantized(_Part):
    """How the numbers come about where no parameters file holds them: names of `haq techniques`, and the observer."""

    ptq: list[Technique]
    observer: Literal["minmax", "percentile", "mse", "entropy"]


class Bounds(_Part):
    """A 95 % confidence interval."""

    low: float
    high: float


class Metric(_Open):
    """One figure. Measured ones say on which split and how many samples, modelled ones how far to trust them."""

    value: float
    kind: Literal["measured", "modelled"]
    direction: Literal["maximize", "minimize"] = _absent("maximize")
    split: Text = _absent("")
    samples: Annotated[int, Field(ge=1)] = _absent(1)
    drop_points: float = _absent(0.0)
    accuracy_interval: Bounds = _absent(None)
    drop_interval: Bounds = _absent(None)


class FallbackPart(_Part):
    """What the target cannot execute as requested."""

    layer: Layer
    requested: PrecisionText
    executed: PrecisionText
    reason: str


class RecoveryStep(_Part):
    """One step of the ladder that `haq recover --step` climbs, on top of the config itself.

    layers: those that differ from the config. metrics: measured accuracy, modelled figures. monotone: not measurably
    worse than the step before it; if it is, the note says by how much.
    """

    layers: Annotated[dict[Layer, PrecisionText], Field(min_length=1)]
    metrics: dict[str, Metric]
    monotone: bool
    note: Text = _absent("")


class EndsPart(_Part):
    """Two ends of a range."""

    low: float
    high: float


class Fp32Shift(_Part):
    """What is added to FP32's mean and largest magnitude of an input to compare them with the quantized network's."""

    mean: float
    peak: float


class ActivationsPart(_Part):
    """What an operand of a layer (key `layer:index`) was on calibration data in the quantized network.

    inputs: how many; count: numbers they hold, low, high and mean of these; not_finite: inputs left out since a number
    is none. covers: beyond it numbers clip by more than half a step, which clipped_share of them do. Sketches are
    DataSketches' KLL of float32 in base64: of a fixed subsample of the numbers, and of each input's mean and largest
    magnitude."""

    inputs: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    low: float
    high: float
    mean: float
    sketch: Text
    input_means: Text
    input_peaks: Text
    not_finite: Count = _absent(0)
    covers: EndsPart = _absent(None)
    clipped_share: Annotated[float, Field(ge=0, le=1)] = _absent(0.0)
    fp32_shift: Fp32Shift = _absent(None)


class Provenance(_Open):
    """Where the config comes from: hashes, search, versions, and how it was finetuned."""

    data_hash: Text = _absent("")
    metric: Text = _absent("")
    direction: Literal["maximize", "minimize"] = _absent("maximize")
    candidate: Count = _absent(0)
    origin: str = _absent("")
    versions: dict[str, str] = _absent({})


class ConfigFile(_Part):
    """One assignment of precisions to the layers of a network on one target, as `haq search`, `pick`, `finetune` and
    `export` write it."""

    schema_: Literal["haq.config/v1"] = Field(alias="schema")
    id: Text
    model: Network
    target: TargetPart
    layers: Annotated[dict[Layer, PrecisionText], Field(min_length=1)]
    metrics: dict[str, Metric]
    requested_bits: dict[Layer, Bits] = _absent({})
    quantization: Quantized = _absent(None)
    fallbacks: list[FallbackPart] = _absent([])
    provenance: Provenance = _absent(None)
    recovery: list[RecoveryStep] = _absent([])
    parameters: FileName = _absent("")
    parameters_sha256: Sha256 = _absent("")
    activations: dict[Annotated[str, StringConstraints(pattern=r":\d+$")], ActivationsPart] = _absent({})


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config file, as it is committed beside this file."""
    return {"$schema": DIALECT, "$id": SCHEMA, **ConfigFile.model_json_schema(by_alias=True)}
