"""A qwix export, opened as its network's Flax twin in JAX on this machine's CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError
from haq.export.qwix_run import QwixRun, embedded_config
from haq.nn.bundle import load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.task import Inputs
from haq.precision import Precision
from haq.spacefile import space_of_config
from haq.verify.artifact import Broken, Sizes

__all__ = ["QwixArtifact", "embedded_config", "open_artifact"]


class QwixArtifact:
    """Rules, codes and scales are those of a TPU; the machine is not, and sums are in the order of XLA on a CPU.

    It is compiled anew for every shape of batch.
    """

    def __init__(self, file: Path, run: QwixRun) -> None:
        self.file, self._run = file, run

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, classes) the logits of a batch."""
        return self._run(inputs)

    def realised(self) -> Mapping[str, Precision | None]:
        """What each layer is stored as and what its rule makes of its input."""
        return self._run.precisions()

    def latency_ms(self, inputs: Inputs, repeats: int) -> tuple[float, ...]:
        """Of this CPU, which says nothing about a TPU."""
        arrays = self._run.arrays(inputs)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            self._run.compiled(self._run.variables, *arrays).block_until_ready()
            times.append(1e3 * (time.perf_counter() - start))
        return tuple(times[1:])

    def size_bytes(self) -> Sizes:
        """Of the numbers, and of the file."""
        return Sizes(self._run.stored_bytes, self.file.stat().st_size)


def open_artifact(file: Path, config: Mapping[str, Any]) -> QwixArtifact:
    """The file on the twin of the shipped network that the config names, built without weights.

    Raises Broken on a file that is damaged or not of this network.
    """
    space = space_of_config(config, None, where=str(file))
    bundle = load_bundle(space, with_data=False)
    try:
        return QwixArtifact(file, QwixRun(file, fold_batch_norm(bundle.model, bundle.example), bundle.example))
    except InputError as error:
        raise Broken(str(error)) from None
