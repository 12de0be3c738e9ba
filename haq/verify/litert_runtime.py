"""A `.tflite` that haq wrote, in the LiteRT interpreter on this machine's CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.config import Config
from haq.errors import InputError, MissingExtra
from haq.export.litert_run import Runner, samples
from haq.export.tflite import CONFIG_KEY, Tflite
from haq.measure.machine import Machine, this_machine
from haq.nn.task import Inputs
from haq.precision import Assignment, Precision
from haq.verify.artifact import Broken, Sizes

WARM_UP = 3
"""Inferences before the first that is timed."""


def open_artifact(file: Path, config: Mapping[str, Any]) -> LitertArtifact:
    """The file in LiteRT, on all cores that this process may use; raises Broken where it cannot be opened."""
    machine, content = this_machine(), file.read_bytes()
    parsed = _parsed(file)
    try:
        runner = Runner(content, threads=machine.cores)
    except MissingExtra:
        raise
    except InputError as error:
        raise Broken(f"{file}: {error}") from error
    return LitertArtifact(file, parsed, runner, Assignment.from_json(config["layers"]), machine)


def embedded_config(file: Path) -> Mapping[str, Any]:
    """The config in the file's metadata; raises InputError where there is none or no valid one, Broken as opening."""
    found = _parsed(file).note(CONFIG_KEY)
    if found is None:
        raise InputError(
            "the artifact holds no config", where=str(file),
            expected=f"metadata {CONFIG_KEY!r}, as haq export writes it", way_out="haq verify CONFIG --artifact FILE",
        )  # fmt: skip
    return Config.of(found, file.parent).content


class LitertArtifact:
    """One file, with XNNPACK's kernels where it has them and LiteRT's own elsewhere.

    It changes as it runs: the interpreter holds one set of tensors.
    """

    def __init__(self, file: Path, parsed: Tflite, runner: Runner, asked: Assignment, machine: Machine) -> None:
        self.file, self._parsed, self._runner, self._asked, self._machine = file, parsed, runner, asked, machine

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, ...) what the artifact answers; the file has batch 1, so samples run one after the other.

        Raises InputError where the inputs' shapes are not the file's.
        """
        return self._runner.run(inputs)

    def realised(self) -> Mapping[str, Precision | None]:
        weights = self._parsed.weights
        return {layer: self._parsed.precision(weights[layer]) if layer in weights else None for layer in self._asked}

    def scales(self) -> Mapping[tuple[str, str], NDArray[np.float64]]:
        file, found = self._parsed, {}
        for layer, weight in file.weights.items():
            if len(file.scales(weight)):
                found[layer, "weight"] = file.scales(weight).astype(np.float64)
                read = file.users(weight)[0].inputs[0]
                if file.type(read) == "INT8":
                    found[layer, "operand 0"] = file.scales(read).astype(np.float64)
        return found

    def latency_ms(self, inputs: Inputs, repeats: int) -> tuple[float, ...]:
        """Per batch: its samples one after the other."""
        times = []
        batch = list(samples(inputs))
        for number in range(WARM_UP + repeats):
            spent = 0.0
            for sample in batch:
                self._runner.feed(sample)
                start = time.perf_counter()
                self._runner.invoke()
                spent += time.perf_counter() - start
            times += [1e3 * spent] if number >= WARM_UP else []
        return tuple(times)

    def size_bytes(self) -> Sizes:
        return Sizes(self._parsed.initializer_bytes(), self.file.stat().st_size)

    def arithmetic(self) -> Mapping[str, str]:
        """Layer -> the format of its products: fp16 layers are computed in fp32 here."""
        known = {layer: precision.compute.name for layer, precision in self.realised().items() if precision is not None}
        return {layer: "fp32" if name == "fp16" else name for layer, name in known.items()}

    @property
    def runtime(self) -> str:
        return f"LiteRT {version('ai-edge-litert')}, CPU"

    @property
    def machine(self) -> str:
        cores = self._machine.cores
        return f"{self._machine.cpu}, {f'{cores} threads' if cores > 1 else 'one thread'}"

    def notes(self) -> tuple[str, ...]:
        return (
            f"run by {self.runtime} on {self.machine}",
            "arithmetic is read off the types in the file; what XNNPACK makes of them it does not tell",
        )


def _parsed(file: Path) -> Tflite:
    try:
        return Tflite(file.read_bytes())
    except MissingExtra:
        raise
    except InputError as error:
        raise Broken(f"{file}: {error}") from error
