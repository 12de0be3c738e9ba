"""Runs a `.tflite` of batch 1 in the LiteRT interpreter on the CPU, sample by sample."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from haq.errors import InputError, MissingExtra
from haq.nn.task import Inputs, batch_size


class Runner:
    """An interpreter with its tensors allocated. It changes as it runs."""

    def __init__(self, content: bytes, *, threads: int = 1, keep_all: bool = False) -> None:
        """keep_all: every tensor can be read after a run, which XNNPACK's fused kernels do not allow: slower.

        Raises MissingExtra without the extra `litert`, InputError where the runtime refuses the file.
        """
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise MissingExtra("ai-edge-litert", "litert") from error
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if keep_all else OpResolverType.BUILTIN
        try:
            with quiet():
                self._interpreter = Interpreter(
                    model_content=content,
                    num_threads=threads,
                    experimental_op_resolver_type=resolver,
                    experimental_preserve_all_tensors=keep_all,
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise InputError(
                "LiteRT does not open the file", got=str(error).splitlines()[0],
                expected="a whole .tflite", way_out="export it again",
            ) from error  # fmt: skip
        (signature,) = self._interpreter.get_signature_list().values()
        runner = self._interpreter.get_signature_runner()
        details = runner.get_input_details()
        self._inputs = {name: details[name]["index"] for name in signature["inputs"]}
        self._shapes = {name: tuple(details[name]["shape"]) for name in self._inputs}
        self._dtypes = {name: details[name]["dtype"] for name in self._inputs}
        self._output = runner.get_output_details()[signature["outputs"][0]]["index"]

    def feed(self, sample: Inputs) -> None:
        """Set the inputs to one sample (batch axis 1); raises InputError where the shapes differ from the file's."""
        for name, value in _named(sample).items():
            array = value.detach().cpu().numpy()
            if name not in self._inputs or array.shape != self._shapes[name]:
                raise InputError(
                    "the inputs are not those of the file", got=f"{name} {array.shape}",
                    expected=", ".join(f"{key} {shape}" for key, shape in self._shapes.items()),
                )  # fmt: skip
            self._interpreter.set_tensor(self._inputs[name], array.astype(self._dtypes[name], copy=False))

    def invoke(self) -> None:
        self._interpreter.invoke()

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, ...) the network's first output for a batch of n."""
        rows = []
        for sample in samples(inputs):
            self.feed(sample)
            self.invoke()
            rows.append(np.array(self._interpreter.get_tensor(self._output), np.float32))
        return np.concatenate(rows)

    def tensor(self, number: int) -> NDArray[Any]:
        """What the last run computed there; only with keep_all."""
        found: NDArray[Any] = self._interpreter.get_tensor(number)
        return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the libraries say of their progress off stdout, which belongs to the result, and their warnings off."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def samples(inputs: Inputs) -> Iterator[Inputs]:
    """A batch as batches of one."""
    for n in range(batch_size(inputs)):
        if isinstance(inputs, dict):
            yield {name: value[n : n + 1] for name, value in inputs.items()}
        else:
            yield tuple(value[n : n + 1] for value in inputs)


def _named(inputs: Inputs) -> dict[str, torch.Tensor]:
    """By the names that litert-torch gives: keywords keep theirs, positions become args_0, args_1, ..."""
    return inputs if isinstance(inputs, dict) else {f"args_{n}": value for n, value in enumerate(inputs)}
