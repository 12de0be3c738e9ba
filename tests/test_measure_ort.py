"""What ONNX Runtime makes of the chains: integer layers as integer kernels, float ones in floats, results alike."""

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("onnxruntime")

from haq.measure import patterns
from haq.measure.chain import chain
from haq.measure.onnx_graph import build
from haq.measure.ort import executed_ops, runner, session
from haq.measure.qdq import insert, layer_nodes

IMAGE, ROWS = (16, 12, 12), (16, 32)


def quantized(workload, integer=lambda index: True):
    model = build(workload)
    return insert(model, {node.name: integer(index) for index, node in enumerate(layer_nodes(model))})


def ops(model):
    return executed_ops(model, 1)


def run(model):
    made, random = session(model, 1), np.random.default_rng(1)
    feeds = {
        value.name: random.standard_normal(value.shape, np.float32)
        if "float" in value.type
        else random.integers(0, 9, value.shape)
        for value in made.get_inputs()
    }
    return made.run(None, feeds)


WORKLOADS = {
    "convolutions": chain("c", IMAGE, [patterns.conv(16, 3)] * 3),
    "strides": chain("s", IMAGE, [patterns.conv(32, 3, stride=2)]),
    "depthwise": chain("d", IMAGE, [patterns.conv(16, 3, groups=16)] * 3),
    "linears": chain("l", ROWS, [patterns.linear(32)] * 3),
    "one row": chain("l1", (32,), [patterns.linear(32)] * 3),
    "attention": patterns.attentions(ROWS, 4, ("mul", "add", "softmax")),
    "gates": patterns.gated(IMAGE, gate=True),
    "hard swish": patterns.with_glue(IMAGE, ("smooth",)),
    "residual": patterns.with_glue(IMAGE, ("add",)),
    "norms": patterns.with_glue(ROWS, ("add", "norm")),
    "gelu": patterns.with_glue(ROWS, ("smooth",)),
    "concatenation": patterns.branches_joined(IMAGE, joined=True),
    "look-ups": patterns.embeddings(16, 32, 3),
    "pools": chain("p", IMAGE, [patterns.conv(16), patterns.pool, patterns.conv(16)]),
    "first layers": patterns.first_layers(3, 16, 2),
    "streams": patterns.streamed(32, 2, paused=True),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pattern_runs_in_floats_and_in_integers_with_the_results_that_it_declares(name):
    workload = WORKLOADS[name]
    for model in (build(workload), quantized(workload)):
        results = run(model)
        shapes = [node.output_shape for node in workload.nodes if node.name in workload.outputs]
        assert [int(np.prod(result.shape)) for result in results] == [int(np.prod(shape)) for shape in shapes]
        assert all(np.isfinite(result).all() for result in results)


def test_integer_results_are_close_to_float_ones():
    workload = chain("c", IMAGE, [patterns.conv(16, 3)] * 2)
    (floats,), (integers,) = run(build(workload)), run(quantized(workload))
    assert np.abs(floats - integers).max() < 0.1 * np.abs(floats).max()


def test_integer_layers_run_as_integer_kernels():
    assert ops(quantized(WORKLOADS["convolutions"]))["QLinearConv"] == 3
    assert ops(quantized(WORKLOADS["depthwise"]))["QLinearConv"] == 3
    assert ops(quantized(WORKLOADS["linears"]))["QGemm"] == 3
    assert ops(quantized(WORKLOADS["one row"]))["QGemm"] == 3
    attention = ops(quantized(WORKLOADS["attention"]))
    # The scores stay in floats: an integer product, but no integer softmax.
    assert (attention["MatMulIntegerToFloat"], attention["QLinearMatMul"], attention["Softmax"]) == (2, 2, 2)


def test_between_integer_layers_only_glue_without_an_integer_kernel_is_dequantized():
    added = ops(quantized(WORKLOADS["residual"]))
    assert (added["QLinearAdd"], added["DequantizeLinear"]) == (patterns.TIMES, 1)
    curved = ops(quantized(WORKLOADS["hard swish"]))
    assert curved["DequantizeLinear"] == patterns.TIMES + 1
    assert ops(quantized(WORKLOADS["concatenation"]))["QLinearConcat"] == patterns.TIMES


def test_in_floats_a_convolution_computes_additions_and_curves_along():
    for name in ("residual", "hard swish"):
        found = ops(build(WORKLOADS[name]))
        assert found["Conv"] == 2 * (patterns.TIMES + 2)
        assert not {"Add", "HardSwish", "HardSigmoid", "Mul"} & set(found)


def test_a_float_layer_between_integer_ones_keeps_its_weights_in_floats():
    mixed = ops(quantized(WORKLOADS["convolutions"], lambda index: index != 1))
    assert mixed["QLinearConv"] == 2
    assert mixed["Conv"] + mixed["FusedConv"] == 1
    # one pair at each end of the integer layers, and nothing that dequantizes weights in every inference
    assert mixed["DequantizeLinear"] == 2


def test_a_runner_runs_the_model_as_often_as_it_is_called(monkeypatch):
    call, runs, run = runner(build(WORKLOADS["look-ups"]), 1), [], onnxruntime.InferenceSession.run_with_iobinding
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run_with_iobinding", lambda *given: (runs.append(1), run(*given))
    )
    call()
    call()
    assert len(runs) == 2
