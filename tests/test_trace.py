"""The tracer against torch's own FLOP counter, published figures, and graphs that can be read off the code."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from haq.errors import InputError
from haq.nn.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from haq.nn.models.resnet import resnet18, resnet50
from haq.nn.trace import trace
from haq.workload import GlueOp


def on_meta(factory):
    with torch.device("meta"):
        return factory(), (torch.empty(1, 3, 224, 224, device="meta"),)


def flops(model, *args, **kwargs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*args, **kwargs)
    return counter.get_total_flops()


def nodes(workload):
    return {node.name: node for node in workload.nodes}


# torchvision's published figures: parameters exactly, GMACs (its "GFLOPS") to the digits given there.
@pytest.mark.parametrize(
    ("factory", "gmacs", "parameters"),
    [
        (resnet18, 1.81, 11_689_512),
        (resnet50, 4.09, 25_557_032),
        (mobilenet_v3_large, 0.22, 5_483_032),
        (mobilenet_v3_small, 0.06, 2_542_856),
    ],
)
def test_vision_networks_have_their_published_macs_and_parameters(factory, gmacs, parameters):
    model, example = on_meta(factory)
    workload = trace(model, example, name="net")
    assert round(workload.macs / 1e9, 2) == gmacs
    assert workload.parameters == parameters
    assert 2 * workload.macs == flops(model, *example)
    assert workload.unsupported == ()
    for layer in workload.layers:
        assert layer.gemm.m * layer.gemm.n * layer.gemm.k * layer.gemm.count == layer.macs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_base_at_128_tokens_has_11_giga_macs_whatever_runs_its_attention(attention):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(attn_implementation=attention))
    ids = torch.zeros(1, 128, dtype=torch.long, device="meta")
    workload = trace(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, name="bert")
    assert workload.parameters == 109_482_240
    # 12 blocks of 4 x 768^2 + 2 x 768 x 3072 MACs per token and 2 x 768 x 128 for attention, and the pooler.
    assert workload.macs == 128 * 12 * (4 * 768**2 + 2 * 768 * 3072 + 2 * 768 * 128) + 768**2
    kinds = [layer.kind for layer in workload.layers]
    assert (kinds.count("linear"), kinds.count("matmul"), kinds.count("embedding")) == (73, 24, 3)
    product = nodes(workload)["encoder.layer.0.attention.self/matmul_1"]
    assert product.input_shapes == ((12, 128, 128), (12, 128, 64))
    assert not any(layer.weight for layer in workload.layers if layer.kind == "matmul")


def test_fused_attention_has_the_layers_of_plain_attention():
    transformers = pytest.importorskip("transformers")
    found = []
    for attention in ("eager", "sdpa"):
        config = transformers.BertConfig(attn_implementation=attention, num_hidden_layers=2)
        with torch.device("meta"):
            model, ids = transformers.BertModel(config), torch.zeros(1, 16, dtype=torch.long)
        workload = trace(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, name="bert")
        # What feeds the first product differs: the fused function scales queries and keys before it, not the scores.
        found.append([dataclasses.replace(layer, inputs=()) for layer in workload.layers])
    assert found[0] == found[1]


def test_a_residual_add_reads_both_branches():
    workload = trace(*on_meta(resnet18), name="net")
    assert nodes(workload)["layer2.0/add_0"].inputs == ("layer2.0.bn2", "layer2.0.downsample.1")
    assert nodes(workload)["layer1.0/add_0"].inputs == ("layer1.0.bn2", "maxpool")
    assert workload.outputs == ("fc",)


class Body(nn.Module):
    """A module whose forward is given; parts are its children."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._body = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self._body(self, *args, **kwargs)


X = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
V = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))


def test_views_are_free_and_their_readers_read_the_producer():
    def body(m, x):
        a, b = m.conv(x).chunk(2, dim=1)
        return m.left(a) + m.right(b).transpose(2, 3)

    model = Body(body, conv=nn.Conv2d(8, 8, 1), left=nn.Conv2d(4, 4, 1), right=nn.Conv2d(4, 4, 1))
    workload = trace(model, (X,), name="chunks")
    assert [n.name for n in workload.nodes] == ["conv", "left", "right", "add_0"]
    assert nodes(workload)["left"].inputs == nodes(workload)["right"].inputs == ("conv",)
    assert nodes(workload)["add_0"].inputs == ("left", "right")


def test_an_in_place_op_takes_the_tensor_over():
    model = Body(lambda m, x: m.second(m.first(x).relu_().add_(1)), first=nn.Conv2d(8, 8, 1), second=nn.Conv2d(8, 8, 1))
    workload = trace(model, (X,), name="in-place")
    assert [(n.name, n.inputs) for n in workload.nodes] == [
        ("first", ("input_0",)),
        ("activation_0", ("first",)),
        ("add_0", ("activation_0",)),
        ("second", ("add_0",)),
    ]


def test_moved_data_is_glue():
    model = Body(lambda m, x: F.pixel_shuffle(torch.cat([m.conv(x), x], 1), 2), conv=nn.Conv2d(8, 8, 1))
    workload = trace(model, (X,), name="moves")
    assert nodes(workload)["reshape_0"].inputs == ("conv", "input_0")
    assert nodes(workload)["reshape_0"].input_elements == 2 * 8 * 36
    assert {n.kind for n in workload.nodes if isinstance(n, GlueOp)} == {"reshape"}


def test_a_module_that_runs_twice_appears_per_call_with_one_weight():
    model = Body(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(12, 12))
    workload = trace(model, (V,), name="twice")
    assert workload.layer_names == ("fc", "fc@1")
    assert workload.parameters == 12 * 12 + 12
    assert workload.macs == 2 * 144


def test_a_tied_head_shares_the_embedding_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    workload = trace(Tied(), (torch.zeros(1, 7, dtype=torch.long),), name="tied")
    assert [layer.weight.key for layer in workload.layers] == ["embed.weight", "embed.weight"]
    assert workload.parameters == 50 * 16
    assert workload.unquantized_parameters == 0


def test_multihead_attention_has_functional_layers_and_two_products():
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    model = Body(lambda m, x: m.attn(x, x, x, need_weights=False)[0], attn=attention)
    x = torch.zeros(1, 5, 16)
    workload = trace(model, (x,), name="mha")
    assert [n.name for n in workload.layers] == ["attn.in_proj", "attn/matmul_0", "attn/matmul_1", "attn.out_proj"]
    assert [n.kind for n in workload.layers] == ["linear", "matmul", "matmul", "linear"]
    assert workload.layers[0].weight.key == "attn.in_proj_weight"
    assert workload.layers[0].weight.shape == (48, 16)
    assert workload.macs == 5 * 16 * 48 + 2 * 4 * 5 * 5 * 4 + 5 * 16 * 16
    assert workload.parameters == sum(p.numel() for p in attention.parameters())


def test_a_weight_stored_input_first_has_its_channels_last():
    class Conv1D(nn.Module):  # as in GPT-2
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(6, 9)), nn.Parameter(torch.zeros(9))

        def forward(self, x):
            return torch.addmm(self.bias, x.view(-1, 6), self.weight)

    (layer,) = trace(Conv1D(), (torch.zeros(1, 4, 6),), name="gpt").layers
    assert (layer.kind, layer.weight.shape, layer.weight.channel_axis, layer.bias_elements) == ("linear", (6, 9), 1, 9)
    (linear,) = trace(nn.Sequential(nn.Linear(6, 9)), (torch.zeros(1, 6),), name="linear").layers
    assert (linear.weight.shape, linear.weight.channel_axis) == ((9, 6), 0)


def test_einsum_attention_is_two_products():
    def body(m, x):
        q, k = m.q(x), m.k(x)
        return torch.einsum("bst,btd->bsd", torch.einsum("bsd,btd->bst", q, k).softmax(-1), x)

    workload = trace(Body(body, q=nn.Linear(8, 8), k=nn.Linear(8, 8)), (torch.randn(1, 5, 8),), name="einsum")
    products = [layer for layer in workload.layers if layer.kind == "matmul"]
    assert [p.macs for p in products] == [5 * 5 * 8, 5 * 5 * 8]


def test_an_op_that_nobody_knows_is_listed_and_the_graph_goes_on():
    model = Body(lambda m, x: m.fc(torch.fft.rfft(x).real), fc=nn.Linear(7, 3))
    workload = trace(model, (V,), name="fft")
    assert {u.op for u in workload.unsupported} == {"aten._fft_r2c"}
    assert nodes(workload)["fc"].inputs == ("input_0",)


def test_a_convolution_with_a_computed_weight_is_not_free():
    model = Body(lambda m, x: F.conv2d(x, m.conv.weight * 2), conv=nn.Conv2d(8, 4, 1))
    workload = trace(model, (X,), name="computed")
    assert "aten.convolution" in {u.op for u in workload.unsupported}


def test_a_recurrent_network_is_never_silently_dropped():
    model = Body(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(8, 8, batch_first=True))
    workload = trace(model, (torch.randn(1, 3, 8),), name="lstm")
    assert workload.unsupported or any(layer.weight for layer in workload.layers)


def test_constants_are_no_ops():
    def body(m, x):
        mask = torch.triu(torch.full((5, 5), float("-inf")), 1)
        position = torch.arange(5).float().sin()
        return m.fc(x + position[:, None]).softmax(-1) + mask.exp().sum()

    workload = trace(Body(body, fc=nn.Linear(8, 5)), (torch.zeros(1, 5, 8),), name="constants")
    assert [n.kind for n in workload.nodes] == ["add", "linear", "softmax", "add"]


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "wrap", [lambda y: (y, None), lambda y: {"logits": y}, lambda y: [y], lambda y: {"deep": ({"er": y},)}]
)
def test_outputs_may_come_in_containers(wrap):
    model = Body(lambda m, x: wrap(m.fc(x)), fc=nn.Linear(12, 3))
    assert trace(model, (V,), name="wrapped").outputs == ("fc",)


def test_inputs_may_come_by_name():
    model = Body(lambda m, left, right: m.fc(left) + right, fc=nn.Linear(12, 12))
    workload = trace(model, {"left": V, "right": V}, name="named")
    assert workload.inputs == (("left", (12,)), ("right", (12,)))
    assert nodes(workload)["add_0"].inputs == ("fc", "right")


def test_the_batch_of_the_example_does_not_matter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    assert trace(model, (X.expand(8, -1, -1, -1),), name="net") == trace(model, (X,), name="net")


def test_the_model_is_as_before():
    model = resnet18().train()
    model.layer1.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    seed = torch.random.get_rng_state()
    trace(model, (torch.zeros(2, 3, 32, 32),), name="net")
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_example_that_does_not_fit_says_so_in_one_line():
    with pytest.raises(
        InputError, match=r"net: the model cannot run on the example input; got .*input_0.*\(1, 12\)"
    ) as e:
        trace(nn.Sequential(nn.Linear(5, 2)), (V,), name="net")
    assert "\n" not in str(e.value)


def test_an_output_that_ignores_the_input_is_refused():
    with pytest.raises(InputError, match="no output depends on the input"):
        trace(Body(lambda m, x: torch.zeros(3)), (V,), name="net")


def test_one_sample_of_a_data_dependent_model_on_real_weights():
    def body(m, x):
        return m.big(x) if x.mean() > -1e9 else m.small(x)

    model = Body(body, big=nn.Linear(12, 9), small=nn.Linear(12, 1))
    assert trace(model, (V,), name="branch").layer_names == ("big",)


layers = st.lists(
    st.tuples(st.sampled_from(["conv", "depthwise", "grouped", "transposed", "relu", "norm", "pool"]), st.booleans()),
    min_size=1, max_size=6,
)  # fmt: skip


def build(plan):
    made = {
        "conv": lambda b: nn.Conv2d(8, 8, 3, padding=1, bias=b),
        "depthwise": lambda b: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=b),
        "grouped": lambda b: nn.Conv2d(8, 8, 1, groups=2, bias=b),
        "transposed": lambda b: nn.ConvTranspose2d(8, 8, 3, padding=1, bias=b),
        "relu": lambda b: nn.ReLU(inplace=b),
        "norm": lambda b: nn.BatchNorm2d(8, affine=b),
        "pool": lambda b: nn.AvgPool2d(3, 1, 1) if b else nn.MaxPool2d(3, 1, 1),
    }
    return nn.Sequential(*(made[kind](flag) for kind, flag in plan), nn.Flatten(), nn.Linear(8 * 36, 5))


@settings(max_examples=40, deadline=None)
@given(layers)
def test_any_small_network_has_the_macs_of_the_flop_counter_and_all_its_parameters(plan):
    model = build(plan)
    workload = trace(model, (X.clone(),), name="random")
    assert 2 * workload.macs == flops(model, X.clone())
    assert workload.parameters == sum(p.numel() for p in model.parameters())
    seen = {name for name, _ in workload.inputs}
    for node in workload.nodes:
        assert set(node.inputs) <= seen
        seen.add(node.name)


def checked(model, *example):
    """The trace of a model, once its parameters are all accounted for and every name is known before it is read."""
    workload = trace(model, example, name="net")
    assert workload.parameters == sum(p.numel() for p in model.parameters())
    assert workload.unquantized_parameters >= 0
    seen = {name for name, _ in workload.inputs}
    for node in workload.nodes:
        assert set(node.inputs) <= seen
        seen.add(node.name)
    assert len(seen) == len(workload.nodes) + len(workload.inputs)
    return workload


def test_time_folded_into_the_batch_counts_in_the_macs():
    model = Body(lambda m, x: m.conv(x.flatten(0, 1)), conv=nn.Conv2d(4, 4, 3, padding=1, groups=4))
    (layer,) = checked(model, torch.zeros(1, 5, 4, 6, 6)).layers
    assert layer.macs == 5 * 36 * 4 * 9
    assert layer.is_depthwise
    transposed = Body(lambda m, x: m.up(x.flatten(0, 1)), up=nn.ConvTranspose2d(4, 2, 2, stride=2))
    (layer,) = checked(transposed, torch.zeros(1, 5, 4, 6, 6)).layers
    assert layer.macs == 5 * 36 * 4 * 2 * 4


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 7), (1, 6, 7, 3)])
def test_a_linear_layer_on_strided_input_is_one_layer_with_its_weight_and_bias(frozen, shape):
    model = Body(lambda m, x: m.fc(x.transpose(1, -1)), fc=nn.Linear(6, 5)).requires_grad_(not frozen)
    (layer,) = checked(model, torch.zeros(shape)).layers
    assert (layer.weight.key, layer.weight.shape, layer.weight.channel_axis) == ("fc.weight", (5, 6), 0)
    assert layer.bias_elements == 5
    assert layer.macs == torch.zeros(shape).numel() * 5


def test_a_matrix_with_one_column_keeps_its_orientation():
    (layer,) = checked(nn.Sequential(nn.Linear(1, 4)), torch.zeros(1, 3, 1)).layers
    assert (layer.weight.shape, layer.weight.channel_axis) == ((4, 1), 0)
    (layer,) = checked(nn.Sequential(nn.Linear(4, 1)), torch.zeros(1, 3, 4)).layers
    assert (layer.weight.shape, layer.weight.channel_axis) == ((1, 4), 0)


def test_a_model_that_is_one_layer_has_a_name_for_it():
    assert checked(nn.Linear(4, 2), torch.zeros(1, 4)).layer_names == ("weight",)


def test_cross_attention_reads_its_own_rows_of_the_packed_projection():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Body(lambda m, x, y: m.attn(x, y, y)[0], attn=attention)
    workload = checked(model, torch.zeros(1, 5, 8), torch.zeros(1, 3, 8))
    query, rest = workload.layers[:2]
    assert (query.name, query.weight.key, query.weight.shape) == (
        "attn.in_proj/rows_0_8", "attn.in_proj_weight[0:8]", (8, 8),
    )  # fmt: skip
    assert (rest.name, rest.weight.key, rest.weight.shape) == (
        "attn.in_proj/rows_8_24", "attn.in_proj_weight[8:24]", (16, 8),
    )  # fmt: skip
    assert workload.unquantized_parameters == 0


def test_a_whole_encoder_decoder_accounts_for_its_parameters():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    assert not checked(model, torch.zeros(1, 5, 16), torch.zeros(1, 4, 16)).unsupported


def test_parameters_that_are_views_of_one_vector_are_not_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    assert [layer.weight.key for layer in checked(model, torch.zeros(1, 4)).layers] == ["0.weight", "1.weight"]


def test_what_a_product_is_added_to_is_an_addition():
    model = Body(lambda m, x: torch.baddbmm(m.fc(x), x, x.transpose(1, 2)), fc=nn.Linear(5, 5))
    workload = checked(model, torch.zeros(1, 5, 5))
    assert nodes(workload)["add_0"].inputs == ("matmul_0", "fc")


def test_one_tensor_given_twice_is_two_inputs():
    x = torch.zeros(1, 3, 4)
    workload = checked(Body(lambda m, a, b: a @ b.transpose(1, 2)), x, x)
    assert workload.layers[0].inputs == ("input_0", "input_1")


def test_a_product_of_constants_is_no_layer_but_keeps_its_number():
    def body(m, x):
        angle = torch.arange(5.0)[:, None] @ m.frequency[None, :]
        return (x * angle.cos()) @ x.transpose(1, 2)

    workload = checked(Body(body, frequency=nn.Buffer(torch.ones(8))), torch.zeros(1, 5, 8))
    assert workload.layer_names == ("matmul_1",)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_recurrent_module_is_unsupported_as_a_whole_on_every_device(cls, device):
    model = Body(lambda m, x: m.fc(m.rnn(x)[0]), rnn=cls(4, 8, batch_first=True), fc=nn.Linear(8, 2)).to(device)
    workload = checked(model, torch.zeros(1, 3, 4, device=device))
    (unsupported,) = workload.unsupported
    assert unsupported.module == "rnn"
    assert unsupported.op.startswith(f"aten.{cls.__name__.lower()}")
    assert workload.layer_names == ("fc",)
    assert workload.unquantized_parameters == sum(p.numel() for p in model.rnn.parameters())


def test_an_unknown_op_that_works_in_place_is_listed():
    model = Body(lambda m, x: m.fc(x).erfinv_(), fc=nn.Linear(12, 3))
    assert {u.op for u in trace(model, (V,), name="in-place").unsupported} == {"aten.erfinv_"}


def test_reshaping_in_place_is_free():
    model = Body(lambda m, x: m.fc(x.clone().unsqueeze_(1).transpose_(1, 2).squeeze_(2)), fc=nn.Linear(12, 3))
    assert [n.kind for n in checked(model, V).nodes] == ["reshape", "linear"]


def test_a_data_class_is_an_output():
    model = Body(lambda m, x: Answer(m.fc(x)), fc=nn.Linear(12, 3))
    assert checked(model, V).outputs == ("fc",)


def test_values_that_are_no_tensors_reach_the_model():
    model = Body(lambda m, x, deep, scale: m.fc(x) * scale if deep else x, fc=nn.Linear(12, 3))
    workload = trace(model, {"x": V, "deep": True, "scale": torch.tensor(2.0)}, name="flags")
    assert workload.inputs == (("x", (12,)), ("scale", ()))
    assert workload.outputs == ("mul_0",)


@pytest.mark.parametrize(("example", "match"), [(V, r"pass \(x,\)"), ((), "no tensor"), ((V[:0],), "no sample")])
def test_an_example_without_a_sample_is_refused(example, match):
    with pytest.raises(InputError, match=match):
        trace(nn.Linear(12, 3), example, name="net")


def test_neither_example_nor_buffers_nor_random_state_change():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.calls, self.rebound = nn.Linear(12, 12), nn.Buffer(torch.zeros(1)), nn.Buffer(torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            self.rebound = self.rebound + 1
            return self.fc(x.add_(1)) + torch.randn(12)

    model, x = Careless(), torch.zeros(2, 12)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    trace(model, (x,), name="careless")
    assert torch.equal(torch.randn(3), expected)
    assert (model.calls, model.rebound, x.sum()) == (0, 0, 0)


def test_the_model_is_as_before_after_a_failure_too():
    model = nn.Sequential(nn.Linear(5, 2)).train()
    with pytest.raises(InputError):
        trace(model, (V,), name="net")
    assert model[0].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_branch_on_data_that_meta_does_not_have_is_refused_and_one_on_a_mask_is_not():
    with torch.device("meta"):
        model = Body(lambda m, x, mask: m.fc(x) if mask.all() else x, fc=nn.Linear(12, 3))
        branch = Body(lambda m, x: x if m.fc(x).mean() > 0 else 2 * x, fc=nn.Linear(12, 3))
        x, mask = torch.zeros(1, 12), torch.ones(1, 12, dtype=torch.bool)
    assert trace(model, (x, mask), name="mask").layer_names == ("fc",)
    with pytest.raises(InputError, match="branches on a computed value"):
        trace(branch, (x,), name="branch")


def test_a_scripted_network_is_refused():
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU()).eval())
    with pytest.raises(InputError, match="TorchScript hides its ops"):
        trace(scripted, (X,), name="net")
