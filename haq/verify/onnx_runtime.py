"""An ONNX file in ONNX Runtime on this machine's CPU: its answers, its times, and the graph that really runs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from haq.config import Config
from haq.doctor import features_of
from haq.errors import InputError
from haq.measure.machine import Machine, this_machine
from haq.measure.ort import PROVIDERS, REFUSED, session
from haq.nn.task import Inputs
from haq.precision import Assignment, Precision
from haq.verify.artifact import CONFIG_KEY, Broken, Codes, Sizes
from haq.verify.onnx_graph import Graph, initializer_bytes
from haq.verify.onnx_optimized import arithmetic

WARM_UP = 3
"""Inferences before the first that is timed."""


def open_artifact(file: Path, config: Mapping[str, Any]) -> OnnxArtifact:
    """The file in ONNX Runtime, on all cores that this process may use; raises Broken where it cannot be opened."""
    model = _read(file)
    opened = OnnxArtifact(file, model, Assignment.from_json(config["layers"]), this_machine())
    try:
        opened.precise  # noqa: B018
    except Exception as error:  # the runtime raises classes of its own, one for each status
        raise Broken(f"{file}: ONNX Runtime cannot open it: {_first_line(error)}") from error
    return opened


def embedded_config(file: Path) -> Mapping[str, Any]:
    """The config in the file's metadata; raises InputError where there is none or no valid one, Broken as opening."""
    metadata = {entry.key: entry.value for entry in _read(file).metadata_props}
    if CONFIG_KEY not in metadata:
        raise InputError(
            "the artifact holds no config", where=str(file), got=", ".join(metadata) or "no metadata",
            expected=f"metadata {CONFIG_KEY!r}, as haq export writes it", way_out="haq verify CONFIG --artifact FILE",
        )  # fmt: skip
    return Config.of(json.loads(metadata[CONFIG_KEY]), file.parent).content


class OnnxArtifact:
    """One file. It opens a session when it first needs one, and keeps it."""

    def __init__(self, file: Path, model: onnx.ModelProto, asked: Assignment, machine: Machine) -> None:
        self.file, self._model, self._asked, self._machine = file, model, asked, machine

    @cached_property
    def precise(self) -> onnxruntime.InferenceSession:
        """What answers come from."""
        return session(self._model, self._machine.cores, precise=True)

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, ...) the first output; a file with a fixed batch is run part by part."""
        feeds = _feeds(self.precise, inputs)
        fixed = self.precise.get_inputs()[0].shape[0]
        samples = len(next(iter(feeds.values())))
        if not isinstance(fixed, int) or fixed == samples:
            return _floats(self.precise.run(None, feeds)[0])
        found = []
        for start in range(0, samples, fixed):
            rows = np.arange(start, start + fixed).clip(max=samples - 1)  # the last part is filled up
            answers = self.precise.run(None, {name: array[rows] for name, array in feeds.items()})[0]
            found.append(_floats(answers)[: samples - start])
        return np.concatenate(found)

    def realised(self) -> Mapping[str, Precision | None]:
        graph = self._graph
        nodes = graph.layer_nodes(self._asked)
        return {
            layer: graph.precision(nodes[layer], self._asked.precision(layer)) if layer in nodes else None
            for layer in self._asked
        }

    def scales(self) -> Mapping[tuple[str, str], NDArray[np.float64]]:
        nodes = self._graph.layer_nodes(self._asked)
        return {(layer, which): s for layer, node in nodes.items() for which, s in self._graph.scales(node)}

    def codes(self) -> Mapping[str, Codes]:
        nodes = self._graph.layer_nodes(self._asked)
        found = {layer: self._graph.codes(node) for layer, node in nodes.items()}
        return {layer: codes for layer, codes in found.items() if codes is not None}

    def latency_ms(self, inputs: Inputs, repeats: int) -> tuple[float, ...]:
        """In the default mode, which is the faster one."""
        fast = session(self._model, self._machine.cores)
        feeds, times = _feeds(fast, inputs), []
        for number in range(WARM_UP + repeats):
            start = time.perf_counter()
            fast.run(None, feeds)
            times += [1e3 * (time.perf_counter() - start)] if number >= WARM_UP else []
        return tuple(times)

    def size_bytes(self) -> Sizes:
        return Sizes(initializer_bytes(self._model), self.file.stat().st_size)

    def arithmetic(self) -> Mapping[str, str]:
        """Layer -> fp32 or int8, by the graph that ONNX Runtime's optimizer leaves."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            session(self._model, 1, path)
            return arithmetic(onnx.load(path), self._model, self._graph.layer_nodes(self._asked))

    @property
    def runtime(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__}, {PROVIDERS[0]}"

    @property
    def machine(self) -> str:
        cores = self._machine.cores
        return f"{self._machine.cpu}, {f'{cores} threads' if cores > 1 else 'one thread'}"

    def notes(self) -> tuple[str, ...]:
        features = features_of(self._machine.flags)
        present = ", ".join(name for name, there in features.items() if there) or "no known features"
        saturates = {True: "which saturates no sum here: the CPU has VNNI", False: "whose 8-bit sums may saturate: the "
                     "CPU has no VNNI", None: "whose 8-bit sums may saturate on x86 without VNNI: the system does not "
                     "tell"}[features.get("vnni")]  # fmt: skip
        found = [
            f"run by {self.runtime} on {self.machine} ({present})",
            f"accuracy in its precise mode (session.x64quantprecision=1), latency in its default mode, {saturates}",
            f"without its optimizer {', '.join(REFUSED)}, which would quantize fp32 layers between integer ones: "
            f"deploy with disabled_optimizers too",
        ]
        emulated = [layer for layer in self._asked if "bf16" in str(self._asked.precision(layer))]
        if emulated:
            found.append(
                f"ONNX Runtime multiplies no bf16 on a CPU: {len(emulated)} layers round to bf16 and multiply in fp32: "
                f"{', '.join(emulated)}"
            )
        return tuple(found)

    @cached_property
    def _graph(self) -> Graph:
        return Graph(self._model)


def _read(file: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(file)
    except Exception as error:  # protobuf raises classes of its own
        raise Broken(f"{file}: not a whole ONNX file: {_first_line(error)}") from error
    if not model.graph.node:
        raise Broken(f"{file}: not a whole ONNX file: its graph is empty")
    return model


def _feeds(made: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """The batch by the graph's names: keyword inputs by theirs, others by position."""
    names = [value.name for value in made.get_inputs()]
    tensors = inputs if isinstance(inputs, dict) else dict(zip(names, inputs, strict=True))
    return {name: np.ascontiguousarray(tensors[name].detach().cpu().numpy()) for name in names}


def _floats(array: Any) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
