"""Simulation of what is no module call: attention products, packed and tied parameters, in transformers' BERT too."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_simulate import NEAREST, seeded, small_network, state_bytes, uniform, workload_of
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from haq.errors import InputError
from haq.nn.calibrate import calibrate
from haq.nn.instrument import instrument_ops
from haq.nn.ptq.layers import QuantizedLayers, Recipe
from haq.nn.quantizers import cast
from haq.nn.sharing import shared_copy
from haq.nn.simulate import Simulator, _Functional, _Rounding, apply
from haq.nn.trace import trace
from haq.precision import FORMATS, Assignment, Precision

INT8 = FORMATS["int8"]


class Attention(nn.Module):
    """One head, written with matmul or with the fused function."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused:
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), -1) @ v


def test_both_operands_of_attention_products_are_quantized_as_by_hand() -> None:
    model, x = Attention(fused=False).eval(), seeded(2, 5, 8)
    workload = trace(model, (x,), name="attention")
    assert workload.layer_names == ("query", "key", "value", "matmul_0", "matmul_1")
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    assert calibration.functional == frozenset()
    only_products = Assignment.of(
        {n: Precision.parse("int8" if "matmul" in n else "fp32") for n in workload.layer_names}
    )
    y = apply(model, workload, only_products, calibration)(x)

    def product(name: str, a: Tensor, b: Tensor) -> Tensor:
        return calibration.quantizer(name, 0, INT8)(a) @ calibration.quantizer(name, 1, INT8)(b)

    q, k, v = model.query(x), model.key(x), model.value(x)
    scores = product("matmul_0", q, k.transpose(1, 2)) / math.sqrt(8)
    by_hand = product("matmul_1", torch.softmax(scores, -1), v)
    assert torch.allclose(y, by_hand, atol=1e-6)
    assert not torch.allclose(y, model(x), atol=1e-5)


@pytest.mark.parametrize("text", ["int8", "int4/int8", "fp16", "int8/bf16"])
def test_the_fused_attention_function_is_taken_apart_and_quantized_alike(text: str) -> None:
    x = seeded(2, 5, 8)
    outputs = []
    for fused in (False, True):
        model = Attention(fused=fused).eval()
        workload = trace(model, (x,), name="attention")
        assert workload.layer_names[-2:] == ("matmul_0", "matmul_1")
        calibration = calibrate(model, workload, [(x,)], stack=NEAREST, observer="minmax")
        with torch.inference_mode():
            outputs.append(apply(model, workload, uniform(workload, text), calibration)(x))
    # The fused function scales q and k by 8^-1/4 each before they are rounded, the other one the product afterwards.
    assert torch.allclose(outputs[0], outputs[1], atol=0.02)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_results_do_not_depend_on_the_gradient_mode(context: type) -> None:
    model, x = Attention(fused=True).eval(), seeded(2, 5, 8)
    workload = trace(model, (x,), name="attention")
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    built = apply(model, workload, uniform(workload, "int4/int8"), calibration)
    with torch.inference_mode():
        expected = built(x)
    with context():
        assert torch.allclose(built(x), expected, atol=1e-6)


class Packed(nn.Module):
    """Multi-head attention: its projections are parameters that no module call multiplies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("text", ["int8", "int4/bf16", "fp16"])
def test_multihead_attention_is_simulated_although_its_layers_are_parameters(text: str) -> None:
    model, x = Packed().eval(), seeded(3, 4, 8)
    workload = trace(model, (x,), name="packed")
    assert workload.layer_names == (
        "attention.in_proj", "attention/matmul_0", "attention/matmul_1", "attention.out_proj",
    )  # fmt: skip
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    assert calibration.functional == {"attention.in_proj", "attention.out_proj"}
    simulator = Simulator(model, workload, calibration)
    precision = Precision.parse(text)
    exact = model(x)
    for name in ("attention.in_proj", "attention.out_proj", "attention/matmul_1"):
        alone = {n: precision if n == name else Precision.parse("fp32") for n in workload.layer_names}
        with torch.inference_mode():
            y = simulator.build(Assignment.of(alone))(x)
        assert not torch.equal(y, exact), name
        assert torch.allclose(y, exact, atol=0.1), name


def test_a_packed_projection_equals_its_arithmetic_by_hand() -> None:
    model, x = Packed().eval(), seeded(3, 4, 8)
    workload = trace(model, (x,), name="packed")
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    simulator = Simulator(model, workload, calibration)
    alone = {n: Precision.parse("int4/int8" if "in_proj" in n else "fp32") for n in workload.layer_names}
    layer = next(layer for layer in workload.layers if layer.name == "attention.in_proj")
    reference = Packed().eval()
    reference.attention.in_proj_weight.data = simulator.stored(layer, FORMATS["int4"]).weight.dequantize()
    rounded = calibration.quantizer("attention.in_proj", 0, INT8)(x)
    with torch.inference_mode():
        assert torch.allclose(simulator.build(Assignment.of(alone))(x), reference(rounded), atol=1e-6)


def test_a_linear_layer_on_strided_input_rounds_after_its_bias_too() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x.transpose(0, 1))
            return y @ y.transpose(1, 2)

    model, x = Strided().eval(), seeded(3, 4, 8)
    workload = trace(model, (x,), name="strided")
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    seen: list[Tensor] = []
    built = apply(model, workload, uniform(workload, "bf16"), calibration)
    built.linear.register_forward_hook(lambda m, a, y: seen.append(y))
    bf16 = FORMATS["bf16"]
    weight, bias = cast(model.linear.weight, bf16), cast(model.linear.bias, bf16)
    with torch.inference_mode():
        built(x)
        by_hand = cast(cast(cast(x, bf16).transpose(0, 1) @ weight.T, bf16) + bias, bf16)
    assert torch.equal(seen[0], by_hand)


def test_different_keys_of_multihead_attention_read_slices_of_the_packed_parameter() -> None:
    class Cross(Packed):
        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, 2 * x, 3 * x, need_weights=False)[0]

    model, x = Cross().eval(), seeded(3, 4, 8)
    workload = trace(model, (x,), name="cross")
    assert sum("in_proj" in n for n in workload.layer_names) == 3
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    built = apply(model, workload, uniform(workload, "int8"), calibration)
    with torch.inference_mode():
        y, exact = built(x), model(x)
    assert not torch.equal(y, exact)
    assert torch.allclose(y, exact, atol=0.1)


def test_a_weight_that_is_tied_and_read_functionally_is_rounded_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(11, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.embedding(tokens), self.embedding.weight)

    model, tokens = Tied().eval(), torch.tensor([[1, 2, 3]])
    workload = trace(model, (tokens,), name="tied")
    assert workload.layer_names == ("embedding", "embedding@1")
    calibration = calibrate(model, workload, [(tokens,)], stack=NEAREST)
    simulator = Simulator(model, workload, calibration)
    built = simulator.build(uniform(workload, "int4/int8"))
    weight = simulator.stored(workload.layers[0], FORMATS["int4"]).weight.dequantize()
    rows = calibration.quantizer("embedding@1", 0, INT8)(weight[tokens])
    with torch.inference_mode():
        assert torch.allclose(built(tokens), rows @ weight.T, atol=1e-6)


def test_following_the_ops_gives_exactly_what_module_hooks_give() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload = trace(model, (x,), name="small")
    assert workload.layer_names == workload_of(model).layer_names
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    simulator = Simulator(model, workload, calibration)
    precisions = {n: Precision.parse(p) for n, p in zip(("0", "2", "4"), ("int8", "fp16", "int4/int8"), strict=True)}
    hooked = simulator.build(Assignment.of(precisions))
    followed = shared_copy(hooked)
    for module in followed.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    layers = QuantizedLayers(model, workload, Recipe(NEAREST))
    rounding = _Rounding(precisions, calibration, _Functional(workload, layers, precisions))
    instrument_ops(followed, workload, rounding, precisions)
    with torch.inference_mode():
        assert torch.equal(hooked(x), followed(x))


def test_an_interrupted_forward_pass_leaves_no_trace() -> None:
    class Fails(Attention):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if x.shape[0] == 3:
                raise KeyboardInterrupt
            return y

    model, x = Fails(fused=True).eval(), seeded(2, 5, 8)
    workload = trace(model, (x,), name="attention")
    built = apply(model, workload, uniform(workload, "int8"), calibrate(model, workload, [(x,)], stack=NEAREST))
    expected = built(x)
    with pytest.raises(KeyboardInterrupt):
        built(seeded(3, 5, 8))
    assert _get_current_dispatch_mode() is None
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(built(x), expected)


def test_a_path_that_the_trace_does_not_know_is_an_error() -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(x.shape[1] - 4):
                x = x @ x.transpose(1, 2) @ x
            return x

    model, x = Grows().eval(), seeded(2, 5, 5)
    workload = trace(model, (x,), name="grows")
    built = apply(model, workload, uniform(workload, "int8"), calibrate(model, workload, [(x,)], stack=NEAREST))
    with pytest.raises(InputError, match=r"matmul_2.*|not in the trace"):
        built(seeded(2, 6, 6))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_face_bert_self_attention_equals_arithmetic_by_hand(implementation: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, attn_implementation=implementation,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    inputs = {
        "input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    before = state_bytes(model)
    workload = trace(model, inputs, name="bert")
    calibration = calibrate(model, workload, [inputs], stack=NEAREST)
    name = "encoder.layer.0.attention.self"
    products = {f"{name}/matmul_0", f"{name}/matmul_1"}
    assert products <= set(workload.layer_names)
    mixed = {n: Precision.parse("int8" if n in products else "fp32") for n in workload.layer_names}
    seen: dict[str, Tensor] = {}
    attention = model.get_submodule(name)
    for part in ("query", "key", "value"):
        getattr(attention, part).register_forward_hook(lambda m, a, y, part=part: seen.update({part: y}))
    with torch.inference_mode():
        model(**inputs)
        heads = {k: v.view(2, 4, 2, 8).transpose(1, 2) for k, v in seen.items()}
        output: list[Tensor] = []
        built = Simulator(model, workload, calibration).build(Assignment.of(mixed))
        built.get_submodule(name).register_forward_hook(lambda m, a, y: output.append(y[0]))
        built(**inputs)

        def rounded(product: int, index: int, x: Tensor) -> Tensor:
            return calibration.quantizer(f"{name}/matmul_{product}", index, INT8)(x)

        # torch's own kernel spreads 1 / sqrt(8) over both operands, the eager code scales their product
        each, after = (8**-0.25, 1.0) if implementation == "sdpa" else (1.0, 8**-0.5)
        scores = rounded(0, 0, heads["query"] * each) @ rounded(0, 1, heads["key"].transpose(2, 3) * each) * after
        mask = (inputs["attention_mask"] == 0)[:, None, None]
        weights = torch.softmax(scores.masked_fill(mask, torch.finfo(torch.float32).min), -1)
        by_hand = (rounded(1, 0, weights) @ rounded(1, 1, heads["value"])).transpose(1, 2).reshape(2, 4, 16)
    assert torch.allclose(output[0], by_hand, atol=1e-5)
    assert state_bytes(model) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_face_bert_takes_every_precision_on_every_layer() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    workload = trace(model, inputs, name="bert")
    calibration = calibrate(model, workload, [inputs], stack=NEAREST)
    simulator = Simulator(model, workload, calibration)
    with torch.inference_mode():
        exact = model(**inputs).logits
        assert torch.equal(simulator.build(uniform(workload, "fp32"))(**inputs).logits, exact)
        outputs = {
            text: simulator.build(uniform(workload, text))(**inputs).logits
            for text in ("fp16", "bf16", "int8/bf16", "int8", "int4/fp16", "int4/int8")
        }
    for text, y in outputs.items():
        assert not torch.equal(y, exact), text
        assert torch.allclose(y, exact, atol=0.15), text
    # The classifier is the last op: its output is in its activation format.
    assert torch.equal(outputs["fp16"], cast(outputs["fp16"], FORMATS["fp16"]))


class Rotary(nn.Module):
    """Attention whose angles are a product of two constants, as rotary position embeddings compute them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("frequencies", torch.linspace(0.1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        angles = (self.get_buffer("frequencies")[:, None] @ torch.arange(float(x.shape[1]))[None]).T
        query, key = self.query(x) * angles.cos(), self.key(x) * angles.cos()
        result: Tensor = (query @ key.transpose(1, 2)).softmax(-1) @ x
        return result


def test_a_product_of_constants_is_no_layer_and_stays_as_it_is() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Rotary().eval(), torch.randn(8, 5, 16)
    workload = trace(model, (x,), name="rotary")
    assert workload.constant_products == ("matmul_0",)
    assert [layer.name for layer in workload.layers] == ["query", "key", "matmul_1", "matmul_2"]
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST)
    int8 = Assignment.uniform(workload.layer_names, Precision.parse("int8/int8"))
    error = (apply(model, workload, int8, calibration)(x) - model(x)).abs().max()
    assert 0 < error < 0.05
