"""A written artifact, opened in its real runtime: what every runtime must be able to tell, and which ones there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from haq.errors import CheckFailed, InputError, MissingExtra, lookup
from haq.nn.task import Inputs
from haq.precision import Precision

CONFIG_KEY = "haq.config"
"""Under this name an artifact's metadata hold the JSON of the config that it was made from."""


class Broken(CheckFailed):
    """The artifact cannot be opened in its runtime: truncated, or refused."""


@dataclass(frozen=True)
class Sizes:
    """initializer_bytes: of the numbers alone, which is what a config promises. file_bytes: on disk, graph included."""

    initializer_bytes: int
    file_bytes: int


class Artifact(Protocol):
    """A file that a runtime executes."""

    file: Path

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, ...) the network's first output for a batch, computed as exactly as the runtime can."""

    def realised(self) -> Mapping[str, Precision | None]:
        """Layer -> what it is stored as and fed with, read back from the artifact; None where that is unknown."""

    def latency_ms(self, inputs: Inputs, repeats: int) -> tuple[float, ...]:
        """One time per repeat and batch, warmed up, in the mode that is deployed."""

    def size_bytes(self) -> Sizes:
        """How large it is."""


@runtime_checkable
class TellsMore(Protocol):
    """An artifact whose runtime and numbers can be looked into."""

    @property
    def runtime(self) -> str:
        """The runtime with its version, as hardware profiles name it."""

    @property
    def machine(self) -> str:
        """What it ran on: the processor and the threads."""

    def arithmetic(self) -> Mapping[str, str]:
        """Layer -> the format that the runtime multiplies in, as far as its own graph tells."""

    def scales(self) -> Mapping[tuple[str, str], NDArray[np.float64]]:
        """(layer, `weight` or `operand 0`) -> the scales in the artifact."""

    def notes(self) -> tuple[str, ...]:
        """What a reader must know about how it was run, in one sentence each."""


@dataclass(frozen=True, eq=False)
class Codes:
    """The integers of a layer. weight: in the shape of the config's, or (channels, the rest).

    bias: (channels,) where it is one of integers, in units of the product of the weight's scale and the operand's.
    """

    weight: NDArray[np.integer[Any]]
    bias: NDArray[np.integer[Any]] | None = None


@runtime_checkable
class TellsCodes(Protocol):
    """An artifact whose integers can be read back."""

    def codes(self) -> Mapping[str, Codes]:
        """Layer -> its integers, for layers with an integer weight."""


Opener = Callable[[Path, Mapping[str, Any]], Artifact]
"""(file, config) -> the artifact; raises Broken where its runtime cannot open it."""


@dataclass(frozen=True)
class Lazy:
    """The runtime whose module has `open_artifact(file, config)` and `embedded_config(file)`.

    suffix: of its files. extra: which extra holds the packages that the module imports.
    """

    module: str
    suffix: str
    extra: str

    def __call__(self, file: Path, config: Mapping[str, Any]) -> Artifact:
        opened: Artifact = self._load().open_artifact(file, config)
        return opened

    def embedded_config(self, file: Path) -> Mapping[str, Any]:
        """The config inside the file; raises InputError where there is none, Broken as opening does."""
        found: Mapping[str, Any] = self._load().embedded_config(file)
        return found

    def _load(self) -> Any:
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("haq"):
                raise
            raise MissingExtra(str(error.name), self.extra) from error


RUNTIMES: Mapping[str, Lazy] = {
    "onnx-qdq": Lazy("haq.verify.onnx_runtime", ".onnx", "onnx"),
    "litert": Lazy("haq.verify.litert_runtime", ".tflite", "litert"),
    "qwix": Lazy("haq.verify.qwix_runtime", ".safetensors", "tpu"),
}
"""Format -> what opens it, by the names of `haq.export.EXPORTERS`."""


def runtime_of(file: Path) -> str:
    """The format of an artifact by its ending; raises InputError on an unknown one."""
    by_suffix = {runtime.suffix: name for name, runtime in RUNTIMES.items()}
    if file.suffix not in by_suffix:
        raise InputError(
            "not an artifact that can be run", where=str(file), got=file.suffix or "no ending",
            expected=f"a {' or '.join(by_suffix)} file, or a config (.json)",
        )  # fmt: skip
    return by_suffix[file.suffix]


def open_artifact(file: Path, config: Mapping[str, Any], fmt: str | None = None) -> Artifact:
    """The file in its runtime. fmt: its format, where the ending does not tell."""
    name = runtime_of(file) if fmt is None else fmt
    if not file.is_file():
        raise InputError(
            "no such artifact", where=str(file), expected=f"a file that `haq export --format {name}` wrote"
        )
    return lookup(RUNTIMES, name, "format that can be run")(file, config)
