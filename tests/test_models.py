"""The four ImageNet networks carry torchvision's state-dict keys and shapes, and compute what their papers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from haq.nn.models.mobilenet_v3 import SqueezeExcitation, mobilenet_v3_large, mobilenet_v3_small
from haq.nn.models.resnet import resnet18, resnet50

GOLDEN = Path(__file__).parent / "golden" / "state_keys"
# Parameter counts as published with torchvision's weights.
PUBLISHED = {
    resnet18: 11_689_512,
    resnet50: 25_557_032,
    mobilenet_v3_small: 2_542_856,
    mobilenet_v3_large: 5_483_032,
}
# Lines of listings of torchvision's checkpoints that users have published (error messages, model cards).
SPOT_CHECKS = {
    resnet18: {
        "layer4.0.downsample.0.weight": (512, 256, 1, 1),
        "layer4.0.downsample.1.running_mean": (512,),
        "layer4.1.conv1.weight": (512, 512, 3, 3),
        "fc.weight": (1000, 512),
    },
    resnet50: {
        "layer4.0.conv3.weight": (2048, 512, 1, 1),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.1.conv1.weight": (512, 2048, 1, 1),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "layer4.0.bn3.num_batches_tracked": (),
    },
    mobilenet_v3_small: {
        "features.3.block.2.0.weight": (24, 88, 1, 1),
        "features.4.block.1.0.weight": (96, 1, 5, 5),
        "features.4.block.2.fc1.weight": (24, 96, 1, 1),
        "features.4.block.2.fc2.bias": (96,),
        "features.4.block.3.0.weight": (40, 96, 1, 1),
        "features.5.block.2.fc1.weight": (64, 240, 1, 1),
    },
    mobilenet_v3_large: {
        "features.4.block.2.fc1.weight": (24, 72, 1, 1),
        "features.4.block.3.0.weight": (40, 72, 1, 1),
        "features.15.block.3.1.running_mean": (160,),
        "features.16.0.weight": (960, 160, 1, 1),
        "classifier.0.weight": (1280, 960),
        "classifier.3.weight": (1000, 1280),
    },
}
MODELS = pytest.mark.parametrize("factory", PUBLISHED, ids=lambda f: f.__name__)


def on_meta(factory: Callable[..., nn.Module], *arguments: int) -> nn.Module:
    with torch.device("meta"):
        return factory(*arguments).eval()


@MODELS
def test_the_parameter_count_is_the_published_one(factory: Callable[..., nn.Module]) -> None:
    assert sum(p.numel() for p in on_meta(factory).parameters()) == PUBLISHED[factory]


@MODELS
def test_keys_and_shapes_are_those_of_the_committed_list(factory: Callable[..., nn.Module]) -> None:
    lines = [line.partition(" ") for line in (GOLDEN / f"{factory.__name__}.txt").read_text().splitlines()]
    expected = {key: tuple(int(axis) for axis in shape.split("x") if axis) for key, _, shape in lines}
    assert {key: tuple(value.shape) for key, value in on_meta(factory).state_dict().items()} == expected


@MODELS
def test_keys_and_shapes_agree_with_published_listings(factory: Callable[..., nn.Module]) -> None:
    state = on_meta(factory).state_dict()
    assert {key: tuple(state[key].shape) for key in SPOT_CHECKS[factory]} == SPOT_CHECKS[factory]


@MODELS
def test_classes_input_channels_and_input_size_are_free(factory: Callable[..., nn.Module]) -> None:
    model = on_meta(factory, 7, 1)
    assert model(torch.empty(2, 1, 96, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(("factory", "side"), [(resnet18, 7), (mobilenet_v3_small, 7), (mobilenet_v3_large, 7)])
def test_the_last_feature_map_is_a_32nd_of_the_input(factory: Callable[..., nn.Module], side: int) -> None:
    seen = []
    model = on_meta(factory)
    model.avgpool.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-1]))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert seen == [side]


def test_the_bottleneck_strides_in_its_3x3_convolution() -> None:
    block = on_meta(resnet50).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("factory", [mobilenet_v3_small, mobilenet_v3_large], ids=lambda f: f.__name__)
def test_mobilenet_batch_norm_has_the_papers_constants(factory: Callable[..., nn.Module]) -> None:
    norms = [m for m in on_meta(factory).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(0.001, 0.01)}


def test_squeeze_excitation_scales_channels_by_a_hard_sigmoid() -> None:
    block = SqueezeExcitation(8)  # 8 / 4 = 2 channels are rounded up to 8
    assert block.fc1.out_channels == 8
    nn.init.zeros_(block.fc2.weight)
    nn.init.constant_(block.fc2.bias, 1.5)
    x = torch.ones(1, 8, 2, 2)
    # hardsigmoid(1.5) = 1.5 / 6 + 1 / 2 = 0.75
    torch.testing.assert_close(block(x), 0.75 * x)
