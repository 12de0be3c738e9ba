"""Small networks that hold every trap for a replay: in-place ops, aliases, shared modules, odd outputs, attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A block that adds in place, and the pre-activation kind whose shortcut reads what a ReLU wrote over."""

    def __init__(self, channels: int, *, pre: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.relu, self.pre = nn.ReLU(inplace=True), pre

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            out = self.conv2(self.relu(self.conv1(self.relu(x))))
            return out + x  # x as the first ReLU left it
        out = self.conv2(self.relu(self.conv1(x)))
        out += x
        return self.relu(out)


class ResNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(*(Residual(8, pre=bool(i % 2)) for i in range(3)))
        self.drop, self.fc = nn.Dropout(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.layers(self.pool(self.relu(self.stem(x)))).mean((2, 3))))


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.sigmoid(self.up(F.relu_(self.down(x.mean((2, 3), keepdim=True))))))


class DepthwiseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(
                nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Hardswish(inplace=True), Gate(6), nn.Conv2d(6, 6, 1),
                nn.ReLU6(),
            )
            for _ in range(2)
        ]  # fmt: skip
        self.body = nn.Sequential(nn.Conv2d(3, 6, 1), *blocks, nn.Flatten(), nn.Linear(6 * 64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Block(nn.Module):
    """Attention by products, by a packed projection in another block, and a feed-forward part; returns a dict."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.packed = nn.MultiheadAttention(8, 2, batch_first=True) if packed else None
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.packed is not None:
            x = x + self.packed(x, x, x, need_weights=False)[0]
        chances = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(8), -1)
        x = self.norm(x + chances @ self.value(x))
        return {"hidden": x + self.down(F.gelu(self.up(x))), "chances": chances}


class Transformer(nn.Module):
    """Tied embeddings, blocks, one of which runs twice, and the first token's view as what the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([Block(packed=False), Block(packed=True)])
        self.first, self.fc = First(), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)["hidden"]
        return self.fc(self.first(x)) + F.linear(x, self.embedding.weight)[:, 0, :4]


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)[:, 0]


class Halves(nn.Module):
    """Two views of one tensor; what is written to one half of an overlap is read in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc(x)
        return y[:, :4], y[:, 2:]


class Odd(nn.Module):
    """Overlapping outputs, a module that leaves a tensor behind, one that returns its input, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.halves, self.leaves, self.same = Halves(), Leaves(), nn.Identity()
        self.twice, self.fc = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.halves(x)
        a.mul_(2)
        y = self.leaves(b)
        same = self.same(y)
        same.add_(1)
        y = self.twice(torch.relu(self.twice(y)))
        assert self.leaves.left is not None
        return self.fc(y + a) + self.leaves.left


class Leaves(nn.Module):
    left: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.left = self.fc(x)
        return torch.tanh(self.left)


IMAGES, VECTORS = seeded(3, 3, 8, 8), seeded(3, 6)
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 0, 7, 8], [9, 10, 1, 1]])
CASES = {
    "residual": (ResNetLike, IMAGES),
    "depthwise": (DepthwiseNet, IMAGES),
    "transformer": (Transformer, TOKENS),
    "odd": (Odd, VECTORS),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with fixed weights, and a batch of it."""
    make, x = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval(), x
