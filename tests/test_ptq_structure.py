"""Structural techniques: cross-layer equalization and SmoothQuant leave what the network computes as it was."""

import pytest
import torch
from test_simulate import seeded
from torch import Tensor, nn

from haq.nn.ptq.cle import ChannelClip, equalized
from haq.nn.ptq.neighbours import neighbours
from haq.nn.ptq.smoothquant import smoothed
from haq.nn.ptq.structure import restructured
from haq.nn.trace import trace, trace_record
from haq.techniques import Stack


def depthwise_net(activation: type[nn.Module] = nn.ReLU6) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), activation(), nn.Conv2d(8, 8, 3, padding=1, groups=8), activation(), nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight *= torch.logspace(-1.5, 1.5, 8)[:, None, None, None]
        net[0].bias *= torch.logspace(-1.5, 1.5, 8)
    return net


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
def test_equalization_keeps_the_output_and_brings_ranges_together(activation: type[nn.Module]) -> None:
    net, x = depthwise_net(activation), 4 * seeded(6, 3, 7, 7)
    made = equalized(net, [(x,)])
    assert torch.allclose(made(x), net(x), rtol=1e-4, atol=1e-5)
    given, taken = (m.weight.detach().flatten(1).abs().amax(dim=1) for m in (made[0], made[2]))
    # r1 = r2 is where equalization ends: sqrt(r1 r2) both (Nagel et al. 2019, equation 11); three sweeps come near.
    assert torch.allclose(given, taken, rtol=0.3)
    before = net[0].weight.detach().flatten(1).abs().amax(dim=1)
    assert float(given.amax() / given.amin()) < 0.2 * float(before.amax() / before.amin())


def test_relu6_becomes_a_clip_that_moves_with_its_channels() -> None:
    made = equalized(depthwise_net(), [(seeded(4, 3, 7, 7),)])
    assert isinstance(made[1], ChannelClip)
    clip = ChannelClip(torch.tensor([1.0, 3.0]))
    assert clip(torch.tensor([[[-1.0, 2.0], [2.0, 4.0]]])).tolist() == [[[0.0, 1.0], [2.0, 3.0]]]


def test_neighbours_share_channels_and_nothing_else_reads_them() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.a(x))
            return self.c(self.b(y) + y)

    for net in (Residual().eval(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Conv2d(4, 2, 1)).eval()):
        assert not list(neighbours(net, trace_record(net, (seeded(1, 3, 5, 5),), name="net")))
    net = depthwise_net()
    found = list(neighbours(net, trace_record(net, (seeded(1, 3, 5, 5),), name="net")))
    assert [(n.producer, n.between, n.consumers) for n in found] == [
        ("0", ("1",), ("2",)), ("2", ("3",), ("4",)), ("4", ("5",), ("7",)),
    ]  # fmt: skip


def test_channels_that_are_read_in_another_order_are_left_alone() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x)).mean(dim=(1, 2))  # reads columns, of which there are four too

    net, x = Crossed().eval(), seeded(2, 3, 4, 4)
    with torch.no_grad():
        net.conv.weight[0] *= 50
    made = equalized(net, [(x,)])
    assert torch.equal(made(x), net(x))


def test_the_model_itself_is_not_touched() -> None:
    net, x = depthwise_net(), seeded(2, 3, 7, 7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    equalized(net, [(x,)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(net[1], nn.ReLU6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.key, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.out(self.query(y) * self.key(y) + y)


def test_smoothing_keeps_the_output_and_takes_outliers_from_the_inputs() -> None:
    torch.manual_seed(0)
    net, x = Block().eval(), seeded(4, 6, 8)
    with torch.no_grad():
        net.norm.weight[2] = 60.0
    workload = trace(net, (x,), name="block")
    made = smoothed(net, workload, [(x,)])
    assert torch.allclose(made(x), net(x), rtol=1e-3, atol=1e-3)
    seen = {}
    made.query.register_forward_hook(lambda m, args, out: seen.setdefault("x", args[0]))
    made(x)
    raw, smooth = (t.detach().abs().flatten(0, -2).amax(dim=0) for t in (net.norm(x), seen["x"]))
    assert float(smooth.amax() / smooth.median()) < 0.3 * float(raw.amax() / raw.median())
    # s_j = sqrt(max|x_j| / max|w_j|), the weights over all layers that read the tensor
    weights = torch.stack([net.query.weight, net.key.weight]).abs().amax(dim=(0, 1))
    assert torch.allclose(made.query.smoothing, (weights / raw).sqrt(), rtol=1e-4)
    assert torch.equal(made.query.smoothing, made.key.smoothing)


def test_a_stack_without_structural_techniques_gives_the_model_back() -> None:
    net, x = depthwise_net(), seeded(2, 3, 7, 7)
    workload = trace(net, (x,), name="net")
    assert restructured(net, workload, Stack.of(["mse"]), [(x,)]) is net
    both = restructured(net, workload, Stack.of(["cle", "smoothquant"]), [(x,)])
    assert torch.allclose(both(x), net(x), rtol=1e-3, atol=1e-4)
