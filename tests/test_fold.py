"""Batch-norm folding: exact, complete, and harmless to the model it is given."""

import copy
import hashlib

import pytest
import torch
from torch import nn

from haq.nn.fold import fold_batch_norm
from haq.nn.models.resnet import resnet18
from haq.nn.trace import trace


def digest(model):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


def randomized(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.2, 3, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.5, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


PAIRS = {
    "conv2d": (nn.Sequential(nn.Conv2d(6, 9, 3), nn.BatchNorm2d(9)), (2, 6, 8, 8)),
    "no bias": (nn.Sequential(nn.Conv2d(6, 9, 3, bias=False), nn.BatchNorm2d(9)), (2, 6, 8, 8)),
    "grouped": (nn.Sequential(nn.Conv2d(6, 12, 3, groups=3), nn.BatchNorm2d(12)), (2, 6, 8, 8)),
    "depthwise": (nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6, eps=1e-3)), (2, 6, 8, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(6, 9, 3), nn.BatchNorm2d(9)), (2, 6, 8, 8)),
    "grouped transposed": (nn.Sequential(nn.ConvTranspose2d(6, 9, 3, groups=3), nn.BatchNorm2d(9)), (2, 6, 8, 8)),
    "conv1d": (nn.Sequential(nn.Conv1d(6, 9, 3), nn.BatchNorm1d(9, affine=False)), (2, 6, 8)),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (2, 2, 5, 5, 5)),
    "linear": (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9)), (2, 6)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_layer_and_its_batch_norm_become_one_layer_with_the_same_output(pair):
    model, shape = copy.deepcopy(PAIRS[pair])
    model = randomized(model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(model, (x,))
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_resnet18_folds_all_twenty_and_keeps_its_logits():
    model = randomized(resnet18())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(model, (x,))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)
    # 11,689,512 parameters less two per batch-norm channel plus one bias per channel: 4,800 channels in all.
    assert trace(folded, (x,), name="folded").parameters == 11_689_512 - 4_800


def test_the_argument_is_bit_identical_afterwards_and_still_training():
    model = randomized(resnet18()).train()
    before, modules = digest(model), [type(m) for m in model.modules()]
    fold_batch_norm(model, (torch.zeros(1, 3, 32, 32),))
    assert digest(model) == before
    assert [type(m) for m in model.modules()] == modules
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class NormFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(self.norm(x))


class SharedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


@pytest.mark.parametrize("cls", [TwoReaders, NormFirst, SharedConv])
def test_a_batch_norm_that_would_change_the_function_stays(cls):
    model = randomized(cls())
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(model, (x,))
    assert isinstance(folded.norm, nn.BatchNorm2d)
    torch.testing.assert_close(folded(x), model(x))


def test_a_network_without_weights_folds_on_the_meta_device():
    with torch.device("meta"):
        model = resnet18()
    folded = fold_batch_norm(model, (torch.empty(1, 3, 224, 224, device="meta"),))
    assert all(p.is_meta for p in folded.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def assert_same_function(model, x):
    model = randomized(model)
    folded = fold_batch_norm(model, (x,))
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    return folded


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def swapped(x):
    return x.transpose(1, 2)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


# The second axis is the sequence here, as long as the layer is wide or not; and flattened pixels have their own norm.
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9)), (2, 9, 6)),
        (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(4)), (2, 4, 6)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(16)), (2, 3, 4, 4)),
    ],
    ids=["sequence as wide", "sequence", "pixels"],
)
def test_a_norm_over_another_axis_than_the_layers_channels_stays(model, shape):
    folded = assert_same_function(copy.deepcopy(model), noise(*shape))
    assert isinstance(folded[-1], nn.BatchNorm1d)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_view_between_layer_and_norm_that_keeps_the_channels_does_not_hinder(frozen):
    points = nn.Sequential(Apply(swapped), nn.Linear(4, 6), Apply(swapped), nn.BatchNorm1d(6))
    folded = assert_same_function(points.requires_grad_(not frozen), noise(2, 4, 5))
    assert isinstance(folded[3], nn.Identity)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(4))
    assert isinstance(assert_same_function(pooled, noise(2, 3, 3, 3))[2], nn.Identity)


def test_a_norm_with_two_names_is_replaced_under_both():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.stem = nn.Sequential(self.conv, self.norm)

        def forward(self, x):
            return self.stem(x)

    folded = assert_same_function(Aliased(), noise(2, 3, 4, 4))
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(folded.stem[1], nn.Identity)


def test_a_norm_that_runs_from_an_unregistered_place_stays():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.plan = (self.conv, self.norm)

        def forward(self, x):
            return self.plan[1](self.plan[0](x))

    assert_same_function(Hidden(), noise(2, 3, 4, 4))


@pytest.mark.parametrize("in_place", [False, True])
def test_an_unknown_op_between_layer_and_norm_keeps_them_apart(in_place):
    function = (lambda x: x.i0_()) if in_place else torch.special.i0
    folded = assert_same_function(
        nn.Sequential(nn.Conv2d(3, 3, 1), Apply(function), nn.BatchNorm2d(3)), noise(2, 3, 4, 4)
    )
    assert isinstance(folded[2], nn.BatchNorm2d)


def test_a_norm_that_also_activates_stays():
    class NormAct(nn.BatchNorm2d):  # as in timm
        def __init__(self, channels):
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(super().forward(x))

    folded = assert_same_function(nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3)), noise(2, 3, 4, 4))
    assert isinstance(folded[1], NormAct)


class Padding(nn.Conv2d):  # as in EfficientNet
    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Deaf(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)


def test_a_users_own_convolution_folds_unless_it_ignores_a_new_bias():
    plain = assert_same_function(nn.Sequential(Padding(3, 3, 1, bias=False), nn.BatchNorm2d(3)), noise(2, 3, 4, 4))
    assert isinstance(plain[1], nn.Identity)
    deaf = assert_same_function(nn.Sequential(Deaf(3, 3, 1, bias=False), nn.BatchNorm2d(3)), noise(2, 3, 4, 4))
    assert isinstance(deaf[1], nn.BatchNorm2d)
