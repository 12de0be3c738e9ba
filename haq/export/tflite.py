"""Reads and edits a `.tflite`: its ops, tensors and constants, and in which precision each layer stands there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError, MissingExtra
from haq.precision import FORMATS, Precision

CONFIG_KEY = "haq.config"
"""Name of the metadata entry that holds the config that the file was made from."""

LAYERS_KEY = "haq.layers"
"""Name of the metadata entry that says which constant is which layer's weight: layer -> name of the tensor."""

_FORMATS = {"FLOAT32": "fp32", "FLOAT16": "fp16", "INT8": "int8", "INT4": "int4", "INT16": "int16"}


@dataclass(frozen=True)
class Op:
    """One op. inputs, outputs: tensor numbers; -1 stands for an input that is left out, a bias say."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Tflite:
    """A parsed file of one subgraph. `model` may be edited; `to_bytes` writes it as it then is."""

    def __init__(self, content: bytes) -> None:
        """Raises InputError on what is not a whole `.tflite`, MissingExtra without the extra `litert`."""
        self._library = flatbuffer_utils()
        try:
            self.model = self._library.read_model_from_bytearray(bytearray(content))
            self.graph = self.model.subgraphs[0]
        except Exception as error:  # the reader indexes into the bytes and fails in any way there is
            raise InputError(
                "not a whole .tflite", got=f"{len(content)} bytes, {type(error).__name__}",
                expected="a flatbuffer TFL3", way_out="export it again",
            ) from error  # fmt: skip

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """All ops in execution order."""
        return tuple(
            Op(
                self._library.opcode_to_name(self.model, op.opcodeIndex),
                tuple(int(i) for i in op.inputs),
                tuple(int(i) for i in op.outputs),
            )
            for op in self.graph.operators
        )

    @cached_property
    def producers(self) -> Mapping[int, Op]:
        """Tensor number -> the op that writes it; inputs and constants have none."""
        return {tensor: op for op in self.ops for tensor in op.outputs}

    def readers(self, tensor: int) -> tuple[Op, ...]:
        """The ops that read a tensor, in order."""
        return tuple(op for op in self.ops if tensor in op.inputs)

    def users(self, weight: int) -> tuple[Op, ...]:
        """The ops that multiply with a weight, itself or dequantized."""
        direct = self.readers(weight)
        behind = [user for op in direct if op.kind == "DEQUANTIZE" for user in self.readers(op.outputs[0])]
        return (*(op for op in direct if op.kind != "DEQUANTIZE"), *behind)

    def name(self, tensor: int) -> str:
        return str(self.graph.tensors[tensor].name.decode())

    def type(self, tensor: int) -> str:
        """INT8, FLOAT32, ..."""
        return str(self._library.type_to_name(self.graph.tensors[tensor].type))

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.graph.tensors[tensor].shape)

    def raw(self, tensor: int) -> bytes | None:
        """The bytes of a constant; None for what is computed."""
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        return None if data is None or self.graph.tensors[tensor].buffer == 0 else bytes(memoryview(data))

    def floats(self, tensor: int) -> NDArray[np.float32] | None:
        """An fp32 constant in its shape; None for anything else."""
        data = self.raw(tensor)
        if data is None or self.type(tensor) != "FLOAT32":
            return None
        return np.frombuffer(data, np.float32).reshape(self.shape(tensor))

    def codes(self, tensor: int) -> NDArray[np.int8] | None:
        """An int8 or int4 constant in its shape, unpacked; None for anything else."""
        data, kind = self.raw(tensor), self.type(tensor)
        if data is None or kind not in ("INT8", "INT4"):
            return None
        packed = np.frombuffer(data, np.int8)
        if kind == "INT4":  # two codes to a byte, the first in the low half
            packed = np.stack([packed << 4 >> 4, packed >> 4], axis=1).ravel()[: int(np.prod(self.shape(tensor)))]
        return packed.reshape(self.shape(tensor))

    def scales(self, tensor: int) -> NDArray[np.float32]:
        """(n,) the scales of a quantized tensor; empty for others."""
        quantization = self.graph.tensors[tensor].quantization
        found = None if quantization is None else quantization.scale
        return np.zeros(0, np.float32) if found is None else np.asarray(found, np.float32)

    def zero_points(self, tensor: int) -> NDArray[np.int64]:
        """(n,) the zero-points of a quantized tensor; empty for others."""
        quantization = self.graph.tensors[tensor].quantization
        found = None if quantization is None else quantization.zeroPoint
        return np.zeros(0, np.int64) if found is None else np.asarray(found, np.int64)

    def rename(self, tensor: int, name: str) -> None:
        self.graph.tensors[tensor].name = name.encode()

    def note(self, name: str) -> Any:
        """The JSON of a metadata entry; None where the file has none of this name."""
        for entry in self.model.metadata or ():
            if entry.name == name.encode():
                return json.loads(bytes(memoryview(self.model.buffers[entry.buffer].data)))
        return None

    def add_note(self, name: str, content: Any) -> None:
        """Add a metadata entry."""
        schema = self._library.schema_fb
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(json.dumps(content).encode(), np.uint8)
        self.model.buffers.append(buffer)
        entry.name, entry.buffer = name.encode(), len(self.model.buffers) - 1
        self.model.metadata = [*(self.model.metadata or ()), entry]

    def to_bytes(self) -> bytes:
        return bytes(self._library.convert_object_to_bytearray(self.model))

    @property
    def weights(self) -> dict[str, int]:
        """Layer -> tensor number of its weight, as haq noted; layers that are not found are left out."""
        numbers = {self.name(i): i for i in range(len(self.graph.tensors))}
        named: Mapping[str, str] = self.note(LAYERS_KEY) or {}
        return {layer: numbers[name] for layer, name in named.items() if name in numbers}

    def precision(self, weight: int) -> Precision | None:
        """The precision in which the constant is stored and multiplied; None where no op reads it as a weight.

        Storage is read off the constant's type. Beside an integer weight an int8 input is static; a float one is
        quantized by the kernel in every inference. An integer weight behind a DEQUANTIZE is multiplied in fp32; an
        fp16 one stands for an fp16 layer, which a runtime computes in what it has.
        """
        stored = _FORMATS.get(self.type(weight))
        for op in self.readers(weight):
            if stored is None:
                return None
            if op.kind == "DEQUANTIZE":
                return Precision(FORMATS[stored], FORMATS["fp16" if stored == "fp16" else "fp32"])
            read = _FORMATS.get(self.type(op.inputs[0]))
            if read is not None:
                dynamic = read == "fp32" and FORMATS[stored].is_integer
                return Precision(FORMATS[stored], FORMATS["int8t" if dynamic else read])
        return None

    def initializer_bytes(self) -> int:
        """The parameters as stored: weights, biases and other float constants, four bytes for every scale of a weight,
        five for scale and zero-point of every static input.

        Not counted: the zero-points and the scales of biases that the format repeats (they follow from the others),
        shapes, paddings and the description of the graph.
        """
        weights = set(self.weights.values())
        layers = [op for weight in weights for op in self.users(weight)]
        biases = {op.inputs[2] for op in layers if len(op.inputs) > 2 and op.inputs[2] >= 0}
        read = {i for op in self.ops for i in op.inputs if i >= 0 and self.type(i) in _FORMATS}
        stored = {self.graph.tensors[i].buffer: len(self.raw(i) or b"") for i in read | biases}
        static = {op.inputs[0] for op in layers if self.type(op.inputs[0]) == "INT8"}
        return sum(stored.values()) + sum(4 * len(self.scales(i)) for i in weights) + 5 * len(static)


def flatbuffer_utils() -> Any:
    """The reader of the package `ai-edge-litert`; raises MissingExtra without it."""
    try:
        from ai_edge_litert.tools import flatbuffer_utils as library
    except ImportError as error:
        raise MissingExtra("ai-edge-litert", "litert") from error
    return library
