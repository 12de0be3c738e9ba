"""The small networks that the grid compares: blocks of layers, attention, gates and what stands between layers."""

from __future__ import annotations

from collections.abc import Sequence

from haq.measure.chain import Bench, Block, Case, Chain, chain, uniform
from haq.workload import Shape, Workload

TIMES = 4
"""Blocks in a chain."""

PAUSE = 100
"""Depthwise convolutions of 384 channels at 14 x 14, that together take a few milliseconds."""

NARROW = 16
"""Columns or channels between two layers whose time is to be small beside the glue after them."""


def conv(channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> Block:
    """A convolution and ReLU."""
    return lambda c: c.conv(channels, kernel, stride=stride, groups=groups).glue("activation")


def linear(columns: int) -> Block:
    return lambda c: c.linear(columns)


def pool(made: Chain) -> None:
    """The largest of 3x3, every second of them."""
    channels, height, width = made.shape
    made.glue("pool", shape=(channels, -(-height // 2), -(-width // 2)))


def bottleneck(width: int) -> Block:
    """Two layers with few columns or channels between them: linear on rows, 1x1 convolutions on images."""
    return lambda c: c.linear(NARROW).linear(width) if len(c.shape) < 3 else c.conv(NARROW, 1).conv(width, 1)


def steps(*blocks: Block) -> Block:
    """Several blocks as one."""

    def all_of(made: Chain) -> None:
        for block in blocks:
            block(made)

    return all_of


def alternating(name: str, shape: Shape, block: Block, formats: tuple[str, str]) -> Case:
    """Wide, narrow, wide, narrow, wide: four changes, less three wide blocks and half of four narrow ones."""
    wide, narrow = formats
    chains = {n: chain(f"{name} x{n}", shape, [block] * n) for n in (5, 3, 1)}
    layers = len(chains[1].layers)
    longer = Bench(chains[5], tuple(formats[i % 2] for i in range(5) for _ in range(layers)))
    minus = ((1.0, uniform(chains[3], wide)), (0.5, uniform(chains[5], narrow)), (-0.5, uniform(chains[1], narrow)))
    return Case(f"{name} {wide} {narrow}", longer, minus, frozenset())


def streamed(width: int, layers: int, *, paused: bool) -> Workload:
    """Linear layers on one row, behind depthwise convolutions whose weights and images are small if paused."""
    if not paused:
        return chain(f"weights of {layers} layers", (width,), [linear(width)] * layers)
    made = Chain((384, 14, 14))
    for index in range(PAUSE):
        made.next_block(index).depthwise()
    outputs = [made.tail]
    if layers:
        made.at(made.extra_input((width,)))
        for index in range(layers):
            made.next_block(PAUSE + index).linear(width)
        outputs.append(made.tail)
    return made.workload(f"weights of {layers} layers after a pause", outputs)


def smallest() -> Workload:
    """One layer that does next to nothing."""
    return chain("one small layer", (NARROW,), [linear(NARROW)])


def first_layers(kernel: int, channels: int, branches: int) -> Workload:
    """Images through a first layer each, and a narrow layer with a stride that leaves little to write."""
    made, outputs = Chain((3, 224, 224)), []
    for index in range(branches):
        made.next_block(index).at(made.extra_input((3, 224, 224)))
        made.conv(channels, kernel, stride=2).glue("activation").conv(NARROW, 1, stride=2)
        outputs.append(made.tail)
    return made.workload(f"first {kernel}x{kernel} {channels} x{branches}", outputs)


def attentions(rows: Shape, heads: int, inner: Sequence[str]) -> Workload:
    """Two blocks of query, key, value, the products with ops between them, and the projection."""
    made = Chain(rows)
    for index in range(2):
        made.next_block(index)
        query, key, value = (made.at(made.start).linear(NARROW).linear(rows[1]).tail for _ in range(3))
        made.scores(query, key, heads)
        for kind in inner:
            made.glue(kind, *([made.extra_input((1, 1, rows[0]))] if kind == "add" else []))
        made.weighted(value, heads).merged(heads).linear(NARROW).linear(rows[1])
    return made.workload(f"attention {heads}x{rows[0]}x{rows[1] // heads} {' '.join(inner)}")


def with_glue(shape: Shape, kinds: Sequence[str]) -> Workload:
    """Bottlenecks with glue after each but the first and the last; an addition is of the block's input."""
    base = bottleneck(shape[-1] if len(shape) < 3 else shape[0])

    def block(made: Chain) -> None:
        base(made)
        for kind in kinds:
            made.glue(kind, *([made.start] if kind == "add" else []))

    return chain(f"bottlenecks {shape} {' '.join(kinds)}", shape, [base, *[block] * TIMES, base])


def gated(shape: Shape, *, gate: bool) -> Workload:
    """Depthwise convolutions, each followed by a squeeze-and-excite gate if wanted (Hu et al. 2018)."""
    channels = shape[0]

    def block(made: Chain) -> None:
        features = made.depthwise().glue("activation").tail
        if gate:
            made.glue("reduce", shape=(channels, 1, 1)).conv(max(8, channels // 4), 1).glue("activation")
            weights = made.conv(channels, 1).glue("smooth").tail
            made.at(features).glue("mul", weights)

    return chain(f"depthwise ReLU {shape} {'gated' if gate else ''}", shape, [block] * TIMES)


def branches_joined(shape: Shape, *, joined: bool) -> Workload:
    """Pairs of depthwise convolutions with another one on each, or with one on both concatenated."""
    made, outputs = Chain(shape), []
    for index in range(TIMES):
        made.next_block(index)
        source = made.extra_input(shape)
        first, second = (made.at(source).depthwise().tail for _ in range(2))
        if joined:
            made.at(first).glue("reshape", second, shape=(2 * shape[0], *shape[1:]))
            outputs.append(made.depthwise().tail)
        else:
            outputs += [made.at(one).depthwise().tail for one in (first, second)]
    return made.workload(f"pairs {shape} {'joined' if joined else ''}", outputs)


def embeddings(rows: int, width: int, tables: int) -> Workload:
    """Look-ups in tables of their own, added up."""
    made = Chain((rows, width))
    for index in range(tables):
        made.next_block(index).embedding(rows, width)
        if index:
            made.glue("add", made.start)
    return made.workload(f"look-ups {rows}x{width} x{tables}")
