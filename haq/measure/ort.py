"""Runs ONNX models in ONNX Runtime on this machine's CPU, and reads back what its optimizer made of them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from haq.measure.timing import Call

PROVIDERS = ("CPUExecutionProvider",)

REFUSED = ("WeightBiasQuantization",)
"""It quantizes the weights of a float convolution that stands between two integer layers; one that a config leaves in
fp32 must run in fp32."""

INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger"})
"""What an int8 layer runs as."""

FLOAT_OPS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
"""What an fp32 layer runs as."""


REST = ("session.force_spinning_stop", "1")
"""A session's threads rest once an inference is over. They would otherwise spin for a tenth of a second, and take the
cores from whatever is timed next; waking them costs some 25 us per inference."""


PRECISE: Mapping[str, str] = {
    # Products of 8-bit codes then do not saturate on x86 without VNNI, where pairs of them are summed in 16 bits.
    "session.x64quantprecision": "1",
    # A product with 4-bit weights would round its other operand to 8 bits (level 4).
    "session.qdq_matmulnbits_accuracy_level": "1",
}
"""Entries of a session that computes what the graph says, instead of something faster."""


def session(
    model: onnx.ModelProto, threads: int, optimized: Path | None = None, *, precise: bool = False
) -> onnxruntime.InferenceSession:
    """The model ready to run with all graph optimizations.

    optimized: where to write the graph that runs, if at all. precise: slower where the processor has no VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry(*REST)
    if precise:
        for key, value in PRECISE.items():
            options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=list(PROVIDERS), disabled_optimizers=list(REFUSED)
    )


def runner(model: onnx.ModelProto, threads: int) -> Call:
    """A call that runs the model once: floats are normal, integers one; inputs and outputs stay where they are.

    With its outputs bound the runtime allocates nothing in a call, as in a program that is made to be fast.
    """
    made, random = session(model, threads), np.random.default_rng(0)
    feeds = {
        value.name: random.standard_normal(value.shape, np.float32)
        if value.type == "tensor(float)"
        else np.ones(value.shape, np.int64)
        for value in made.get_inputs()
    }
    results = made.run(None, feeds)
    binding = made.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for value, array in zip(made.get_outputs(), results, strict=True):
        binding.bind_ortvalue_output(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def call() -> None:
        made.run_with_iobinding(binding)

    return call


def executed_ops(model: onnx.ModelProto, threads: int) -> Counter[str]:
    """Op type -> nodes in the graph that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, threads, path)
        return Counter(node.op_type for node in onnx.load(path).graph.node)
