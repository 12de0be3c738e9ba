"""The networks that phone timings exist for: their sizes, work, keys and graphs, against what others publish."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
from torch import nn

from haq.nn.bundle import load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.models import efficientnet_lite
from haq.nn.trace import trace
from haq.spacefile import load_space, with_seq_len
from haq.workload import GlueOp, Workload

# Parameters and multiply-accumulates (torchvision's "GFLOPS") as published with torchvision's weights.
TORCHVISION = {
    "densenet121": (7_978_856, 2.83e9),
    "googlenet": (6_624_904, 1.50e9),
    "mobilenet_v2": (3_504_872, 0.30e9),
    "squeezenet1_1": (1_235_496, 0.35e9),
    "resnext50": (25_028_904, 4.23e9),
    "efficientnet_b0": (5_288_548, 0.39e9),
    "efficientnet_b4": (19_341_616, 4.39e9),
}
# In millions, from tensorflow/tpu, models/official/efficientnet/lite/README.md.
LITE = {"efficientnet_lite0": (4.7, 407), "efficientnet_lite2": (6.1, 899), "efficientnet_lite4": (13.0, 2640)}
IMAGES = (*TORCHVISION, *LITE)
# Shapes that follow from the papers' tables, under torchvision's names.
KEYS = {
    "densenet121": {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.denseblock1.denselayer1.norm1.weight": (64,),
        "features.denseblock3.denselayer24.conv1.weight": (128, 256 + 23 * 32, 1, 1),
        "features.transition3.conv.weight": (512, 1024, 1, 1),
        "features.norm5.running_var": (1024,),
        "classifier.weight": (1000, 1024),
    },
    "googlenet": {
        "conv1.conv.weight": (64, 3, 7, 7),
        "inception3a.branch3.1.conv.weight": (32, 16, 3, 3),  # the "5x5" branch
        "inception4d.branch2.1.bn.running_mean": (288,),
        "inception5b.branch4.1.conv.weight": (128, 832, 1, 1),
        "fc.bias": (1000,),
    },
    "mobilenet_v2": {
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.3.running_var": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
    "squeezenet1_1": {
        "features.0.weight": (64, 3, 3, 3),
        "features.3.squeeze.weight": (16, 64, 1, 1),
        "features.12.expand3x3.weight": (256, 64, 3, 3),
        "classifier.1.weight": (1000, 512, 1, 1),
    },
    "resnext50": {
        "layer1.0.conv1.weight": (128, 64, 1, 1),
        "layer1.0.conv2.weight": (128, 4, 3, 3),
        "layer4.2.conv2.weight": (1024, 32, 3, 3),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
    },
    "efficientnet_b0": {
        "features.1.0.block.0.0.weight": (32, 1, 3, 3),
        "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
        "features.2.0.block.2.fc1.weight": (4, 96, 1, 1),  # 16 // 4, of the block's input
        "features.7.0.block.3.0.weight": (320, 1152, 1, 1),
        "features.8.1.running_mean": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    "efficientnet_b4": {
        "features.0.0.weight": (48, 3, 3, 3),
        "features.1.1.block.1.fc1.weight": (6, 24, 1, 1),
        "features.7.1.block.2.fc1.weight": (112, 2688, 1, 1),
        "features.8.0.weight": (1792, 448, 1, 1),
    },
}


@functools.cache
def built(name: str) -> nn.Module:
    return load_bundle(load_space(name), with_data=False).model


@functools.cache
def traced(name: str) -> Workload:
    bundle = load_bundle(load_space(name), with_data=False)
    return trace(bundle.model, bundle.example, name=name)


@functools.cache
def folded(name: str) -> Workload:
    bundle = load_bundle(load_space(name), with_data=False)
    return trace(fold_batch_norm(bundle.model, bundle.example), bundle.example, name=name)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_and_work_are_the_published_ones(name: str) -> None:
    parameters, macs = TORCHVISION[name]
    assert traced(name).parameters == parameters
    # One percent, or what two published decimals cannot tell (0.39 is anything from 0.385 to 0.395).
    assert traced(name).macs == pytest.approx(macs, rel=0.01, abs=0.005e9)


@pytest.mark.parametrize("name", LITE)
def test_the_lite_networks_have_the_published_size_and_their_work_is_below_the_published_by_three_per_value(
    name: str,
) -> None:
    parameters, millions = LITE[name]
    assert traced(name).parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    # Google's multiply-adds hold about three operations per output value on top: batch norm's two, and ReLU6.
    values = sum(math.prod(layer.output_shape) for layer in traced(name).layers)
    assert (traced(name).macs + 3 * values) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_have_torchvisions_names_and_the_papers_shapes(name: str) -> None:
    state = built(name).state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[name]} == KEYS[name]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_becomes_a_thousand_logits_and_every_op_is_known(name: str) -> None:
    (image,) = load_space(name).model.inputs
    batch = torch.empty(2, *image.shape, device="meta")
    assert built(name)(batch).shape == (2, 1000)
    assert traced(name).unsupported == ()


@pytest.mark.parametrize("name", IMAGES)
def test_every_batch_norm_folds_but_those_of_densenet_that_read_a_concatenation(name: str) -> None:
    nodes = {node.name: node for node in folded(name).nodes}
    left = [node for node in nodes.values() if node.kind == "norm"]
    if name != "densenet121":
        assert left == []
        return
    # One per dense layer, transition and at the end: 6 + 12 + 24 + 16, 3 and 1.
    assert len(left) == 62
    assert {nodes[source].kind for node in left for source in node.inputs} == {"reshape"}


def test_a_dense_layer_joins_all_maps_so_far_in_one_op_that_lists_each() -> None:
    nodes = {node.name: node for node in traced("densenet121").nodes}
    block = "features.denseblock1"
    assert nodes[f"{block}.denselayer4/reshape_0"] == GlueOp(
        name=f"{block}.denselayer4/reshape_0",
        kind="reshape",
        inputs=("features.pool0", *(f"{block}.denselayer{i}.conv2" for i in (1, 2, 3))),
        input_shapes=((64, 56, 56), *[(32, 56, 56)] * 3),
        output_shape=(64 + 3 * 32, 56, 56),
    )
    assert max(len(node.inputs) for node in nodes.values()) == 25  # 24 layers of the third block and its input


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("googlenet", (0.001, 0.1)),
        ("densenet121", (1e-5, 0.1)),
        ("mobilenet_v2", (1e-5, 0.1)),
        ("efficientnet_b0", (1e-5, 0.1)),  # torchvision has TensorFlow's from B5 on
        ("efficientnet_b4", (1e-5, 0.1)),
    ],
)
def test_batch_norm_has_torchvisions_constants(name: str, constants: tuple[float, float]) -> None:
    norms = [m for m in built(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {constants}


def test_a_pool_that_rounds_up_keeps_the_last_column() -> None:
    shapes = {node.name: node.output_shape for node in traced("googlenet").nodes}
    # (112 - 3) / 2 + 1 = 55.5 windows: 56 rounded up, 55 down.
    assert shapes["maxpool1"] == (64, 56, 56)
    assert shapes["maxpool4"] == (832, 7, 7)


@pytest.mark.parametrize(("name", "side"), [("efficientnet_lite2", 65), ("efficientnet_lite4", 75)])
def test_the_wider_lite_networks_give_the_logits_and_have_the_keys_of_the_package(name: str, side: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    theirs = package.EfficientNet.from_name(name.replace("_", "-"), image_size=side).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = getattr(efficientnet_lite, name)().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


# MobileBERT


def per_token(tokens: int) -> int:
    """Multiply-accumulates of one token in one layer."""
    bottlenecks = 2 * 512 * 128 + 128 * 512
    attention = 2 * 128 * 128 + 512 * 128 + 2 * tokens * 128 + 128 * 128
    return bottlenecks + attention + 4 * 2 * 128 * 512


def test_mobilebert_has_the_papers_layers() -> None:
    pytest.importorskip("transformers")
    workload = traced("mobilebert")
    # Weights of a layer as above without the two products; biases, and a weight and a bias in place of each norm.
    biases = 2 * 128 + 512 + 4 * 128 + 4 * (512 + 128)
    norms = 2 * (2 * 128 + 128 + 4 * 128 + 512)
    embeddings = 30_522 * 128 + 512 * 512 + 2 * 512 + (3 * 128 * 512 + 512) + 2 * 512
    assert workload.parameters == embeddings + 24 * (per_token(0) + biases + norms) == 24_581_888
    assert workload.macs == 384 * (3 * 128 * 512 + 24 * per_token(384))
    assert workload.unsupported == ()
    assert [layer.kind for layer in workload.layers].count("matmul") == 2 * 24


def test_the_word_head_multiplies_every_token_with_the_vocabulary() -> None:
    pytest.importorskip("transformers")
    workload = traced("mobilebert_words")
    assert workload.macs - traced("mobilebert").macs == 384 * (512 * 512 + 512 * 30_522)
    assert workload.unsupported == ()


def test_mobilebert_takes_up_to_512_tokens() -> None:
    pytest.importorskip("transformers")
    space = with_seq_len(load_space("mobilebert"), 512)
    bundle = load_bundle(space, with_data=False)
    assert bundle.model(**bundle.example).shape == (1, 512, 512)


def test_only_query_and_key_share_their_bits_as_the_value_reads_something_else() -> None:
    pytest.importorskip("transformers")
    for name in ("mobilebert", "mobilebert_words"):
        (group,) = load_space(name).groups
        nodes = {node.name: node for node in traced(name).nodes}
        query, key = (nodes[layer.replace("{i}", "5")] for layer in group.layers)
        value = nodes[re.sub("query$", "value", query.name)]
        assert query.inputs == key.inputs != value.inputs


def test_hidden_states_and_words_are_those_that_transformers_gives_with_padding_too() -> None:
    pytest.importorskip("transformers")
    from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig
    from transformers.models.mobilebert.modeling_mobilebert import MobileBertForMaskedLM

    from haq.nn.models.mobilebert import MobileBertWords

    torch.manual_seed(0)
    config = MobileBertConfig(vocab_size=100, num_hidden_layers=2, attn_implementation="eager")
    theirs, ours = MobileBertForMaskedLM(config).eval(), MobileBertWords(config).eval()
    for name, parameter in theirs.named_parameters():
        if "Norm" not in name:
            nn.init.normal_(parameter, std=0.1)  # with its own 0.02 no token looks at another
    head = theirs.cls.predictions
    ours.encoder.mobilebert.load_state_dict(theirs.mobilebert.state_dict(), strict=False)
    ours.words.dense.load_state_dict(head.transform.dense.state_dict())
    ours.words.norm.load_state_dict(head.transform.LayerNorm.state_dict())
    joined = torch.cat([head.decoder.weight.t(), head.dense.weight]).t()
    ours.words.decoder.load_state_dict({"weight": joined, "bias": head.decoder.bias})
    ids, mask = torch.randint(0, 100, (2, 9)), torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        torch.testing.assert_close(ours.encoder(ids, mask), expected.hidden_states[-1], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours(ids, mask), expected.logits, rtol=1e-4, atol=1e-3)
        assert not torch.allclose(ours(ids, torch.ones_like(mask))[1], ours(ids, mask)[1], atol=0.1)


def test_bert_with_its_word_head_multiplies_what_arithmetic_says() -> None:
    pytest.importorskip("transformers")
    workload = traced("bert_base_words")
    # twelve layers of 384 tokens: four 768 x 768, two 768 x 3,072, two products of 384 x 384; then the head
    layer = 384 * (4 * 768**2 + 2 * 768 * 3072 + 2 * 384 * 768)
    assert workload.macs == 12 * layer + 384 * (768**2 + 768 * 30_522)
    assert workload.unsupported == ()
