"""A replayed candidate answers, bit for bit, what its full forward pass answers."""

from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from replay_nets import CASES, Residual, network
from torch import nn

from haq.nn.calibrate import calibrate
from haq.nn.prefix import replayed
from haq.nn.recording import Recording, record
from haq.nn.simulate import Simulator
from haq.nn.trace import trace
from haq.precision import FP32, Assignment, Precision
from haq.techniques import Stack
from haq.workload import Workload

PRECISIONS = ("int8", "int4/int8", "fp16", "int4/bf16", "fp32")


@cache
def recorded(name: str) -> tuple[Simulator, Workload, Recording]:
    model, x = network(name)
    workload = trace(model, (x,), name=name)
    calibration = calibrate(model, workload, [(x,)], stack=Stack(("mse",)))
    simulator = Simulator(model, workload, calibration, in_place=True)
    with torch.inference_mode():
        return simulator, workload, record(simulator.build(executed(workload, {})), (x,))


def executed(workload: Workload, piece: dict[str, str]) -> Assignment:
    return Assignment.of({n: Precision.parse(piece[n]) if n in piece else FP32 for n in workload.layer_names})


def tied(workload: Workload, layers: set[str]) -> set[str]:
    """With all other calls of their modules, and all others that share their weights."""
    keys = {layer.weight.key for layer in workload.layers if layer.weight and layer.name in layers}
    modules = {name.split("@")[0] for name in layers}
    return {
        layer.name
        for layer in workload.layers
        if layer.module in modules or (layer.weight and layer.weight.key in keys)
    }


def share_when_exact(name: str, piece: dict[str, str]) -> float:
    """The share of the replay, once its output was found to be that of the full pass."""
    simulator, workload, recording = recorded(name)
    x = network(name)[1]
    changed = {layer for layer, text in piece.items() if text != "fp32"}
    with torch.inference_mode():
        full = simulator.build(executed(workload, piece))(x)
        candidate = simulator.build(executed(workload, piece))
        found = replayed(candidate, recording, workload, changed, (x,))
        assert torch.equal(found.output, full)
        assert torch.equal(candidate(x), full), "the candidate is not as it was"
    return found.share


@pytest.mark.parametrize("name", CASES)
def test_every_layer_in_every_precision_is_replayed_bit_for_bit(name: str) -> None:
    _, workload, recording = recorded(name)
    for layer in workload.layer_names:
        for text in PRECISIONS[:-1]:
            share_when_exact(name, dict.fromkeys(tied(workload, {layer}), text))
    with torch.inference_mode():
        assert torch.allclose(recording.output, network(name)[0](network(name)[1]), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_piece_is_replayed_bit_for_bit_whatever_was_replayed_before(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CASES)))
    workload = recorded(name)[1]
    layers = data.draw(st.sets(st.sampled_from(workload.layer_names), min_size=1, max_size=4))
    text = {layer.split("@")[0]: data.draw(st.sampled_from(PRECISIONS)) for layer in sorted(tied(workload, layers))}
    whole = tied(workload, layers)
    by_key = {
        layer.weight.key if layer.weight else layer.module: text[layer.module]
        for layer in workload.layers
        if layer.name in whole
    }
    piece = {
        layer.name: by_key[layer.weight.key if layer.weight else layer.module]
        for layer in workload.layers
        if layer.name in whole
    }
    assume(set(piece.values()) != {"fp32"})
    assert 0 < share_when_exact(name, piece) <= 1


def test_only_what_follows_the_changed_layer_is_run() -> None:
    # 3 -> 8 channels on 4 x 4 (3456), then on 2 x 2 six convolutions of 8 x 8 x 9 x 4 = 2304, then 8 x 4.
    total = 3 * 8 * 9 * 16 + 6 * 2304 + 32
    assert recorded("residual")[1].macs == total
    assert share_when_exact("residual", {"stem": "int8"}) == 1
    assert share_when_exact("residual", {"fc": "int8"}) == pytest.approx(32 / total)
    assert share_when_exact("residual", {"layers.2.conv1": "int8"}) == pytest.approx((2 * 2304 + 32) / total)
    assert share_when_exact("residual", {"layers.2.conv2": "int8"}) == pytest.approx((2304 + 32) / total)
    assert share_when_exact("transformer", {"fc": "fp16"}) < 0.1
    assert share_when_exact("depthwise", {"body.4": "fp16"}) < 0.7


def test_modules_that_do_not_run_are_not_called() -> None:
    simulator, workload, recording = recorded("residual")
    candidate = simulator.build(executed(workload, {"layers.2.conv2": "int8"}))
    ran: list[str] = []
    for name, module in candidate.named_modules():
        if isinstance(module, nn.Conv2d | Residual):
            inner = module.forward
            module.forward = lambda *a, name=name, inner=inner: (ran.append(name), inner(*a))[1]  # type: ignore[method-assign]
    with torch.inference_mode():
        replayed(candidate, recording, workload, {"layers.2.conv2"}, (network("residual")[1],))
    # The second block writes over its input, so that it is called, but its convolutions are not.
    assert ran == ["layers.1", "layers.2", "layers.2.conv2"]


def test_a_candidate_that_shares_no_parameters_is_run_whole() -> None:
    simulator, workload, recording = recorded("residual")
    model, x = network("residual")
    with torch.inference_mode():
        found = replayed(model, recording, workload, {"fc"}, (x,))
        assert found.share == 1
        assert torch.equal(found.output, simulator.build(executed(workload, {}))(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hugging_face_outputs_are_replayed(implementation: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, attn_implementation=implementation,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    workload = trace(model, inputs, name="bert")
    simulator = Simulator(model, workload, calibrate(model, workload, [inputs], stack=Stack(("mse",))), in_place=True)
    with torch.inference_mode():
        recording = record(simulator.build(executed(workload, {})), inputs)
        shares = []
        for layer in workload.layer_names:
            assignment = executed(workload, {layer: "int8"})
            full = simulator.build(assignment)(**inputs).logits
            found = replayed(simulator.build(assignment), recording, workload, {layer}, inputs)
            assert torch.equal(found.output.logits, full), layer
            shares.append(found.share)
    assert shares[-1] < 0.01
    assert shares[len(shares) // 2] < 0.7
