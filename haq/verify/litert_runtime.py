"""A `.tflite` that haq wrote, opened in the LiteRT interpreter on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError
from haq.export.litert_run import Runner, samples
from haq.export.tflite import Tflite
from haq.nn.task import Inputs
from haq.precision import Precision


@dataclass(frozen=True, eq=False)
class StoredScales:
    """weight: (channels,). input: of a static int8 input, with its zero-point as haq counts it, 0 to 255; else None."""

    weight: NDArray[np.float32]
    input: tuple[float, int] | None


class LitertArtifact:
    """The file in the runtime that will execute it: XNNPACK's kernels where it has them, LiteRT's own elsewhere.

    It changes as it runs: the interpreter holds one set of tensors.
    """

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        """Raises InputError on a file that is absent or not whole, MissingExtra without the extra `litert`."""
        self.file = file
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(
                "cannot read the artifact", where=str(file), got=error.strerror, expected="a .tflite"
            ) from None
        self._parsed = Tflite(content, where=str(file))
        self._runner = Runner(content, where=str(file), threads=threads)

    @property
    def about(self) -> Mapping[str, Any]:
        """Whose the file is: `config` (its id) and `model` (name and weights_hash); empty if haq did not write it."""
        return self._parsed.about

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, classes) what the artifact answers; the file has batch 1, so samples run one after the other.

        Raises InputError where the inputs' shapes are not the file's.
        """
        return self._runner.run(inputs)

    def realised(self) -> Mapping[str, Precision | None]:
        """Layer -> the precision that stands in the file; None for one whose weight no op of the file reads."""
        weights = self._parsed.weights
        return {
            layer: self._parsed.precision(weights[layer]) if layer in weights else None
            for layer in self.about.get("layers", {})
        }

    def arithmetic(self) -> Mapping[str, str]:
        """Layer -> the format of its products on this CPU: fp16 layers are computed in fp32 here."""
        known = {layer: precision.compute.name for layer, precision in self.realised().items() if precision is not None}
        return {layer: "fp32" if name == "fp16" else name for layer, name in known.items()}

    def scales(self) -> Mapping[str, StoredScales]:
        """The scales of every layer with an integer weight."""
        file, found = self._parsed, {}
        for layer, weight in file.weights.items():
            if len(file.scales(weight)):
                read = file.users(weight)[0].inputs[0]
                static = (float(file.scales(read)[0]), int(file.zero_points(read)[0]) + 128)
                found[layer] = StoredScales(file.scales(weight), static if file.type(read) == "INT8" else None)
        return found

    def codes(self, layer: str) -> NDArray[np.int8]:
        """A layer's stored codes in torch's order of axes; raises InputError for a layer without integer weights."""
        weights = self._parsed.weights
        found = self._parsed.codes(weights[layer]) if layer in weights else None
        if found is None:
            raise InputError("the layer has no integer weight", where=str(self.file), got=layer)
        if found.ndim != 4:
            return found
        # Channels come last in the file; a depthwise weight is (1, height, width, channels).
        depthwise = any(op.kind == "DEPTHWISE_CONV_2D" for op in self._parsed.users(weights[layer]))
        return np.moveaxis(found, 3, 0 if depthwise else 1)

    def latency_ms(self, inputs: Inputs, repeats: int) -> tuple[float, ...]:
        """Wall time of each of `repeats` inferences of the first sample, after one that warms up."""
        self._runner.feed(next(samples(inputs)))
        self._runner.invoke()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            self._runner.invoke()
            times.append(1e3 * (time.perf_counter() - begin))
        return tuple(times)

    def initializer_bytes(self) -> int:
        """What the parameters take as stored: what a config promises as its size."""
        return self._parsed.initializer_bytes()


def open_litert(file: Path, options: Mapping[str, Any]) -> LitertArtifact:
    """The artifact. options: `threads`, of the interpreter; 1 if absent. Raises InputError as LitertArtifact does."""
    return LitertArtifact(file, threads=int(options.get("threads", 1)))
