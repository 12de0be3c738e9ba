"""Builds small workloads node by node, and the comparisons between two of them that single out one kind of kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from haq.precision import Assignment, Precision
from haq.workload import Gemm, GlueOp, LayerSpec, Shape, WeightSpec, Workload, elements

STORED_AS = {"tf32": "fp32"}
"""A way to multiply fp32 that is no format of its own."""


@dataclass(frozen=True)
class Bench:
    """A workload that is timed. formats: of each layer, in order, such as `int8`: weights and activations alike."""

    workload: Workload
    formats: tuple[str, ...]

    @property
    def executed(self) -> Assignment:
        layers = self.workload.layer_names
        return Assignment.of(
            {n: Precision.parse(STORED_AS.get(f, f)) for n, f in zip(layers, self.formats, strict=True)}
        )

    @property
    def name(self) -> str:
        return f"{self.workload.name} {'/'.join(dict.fromkeys(self.formats))}"


@dataclass(frozen=True)
class Case:
    """A kernel, or a few that always come together, as what one bench takes longer than others.

    minus: (weight, bench) whose weighted times are subtracted. nodes: of the longer bench, what the difference is made
    of, but for what the model knows well enough; without any it is the changes of format.
    """

    name: str
    longer: Bench
    minus: tuple[tuple[float, Bench], ...]
    nodes: frozenset[str]

    @property
    def benches(self) -> tuple[Bench, ...]:
        return (self.longer, *(bench for _, bench in self.minus))


@dataclass
class Chain:
    """A workload while nodes are appended to it. Names start with the block's number, so that equal blocks differ.

    tail and shape: of the last node, which the next one reads. start: what the block reads first. inputs: of all.
    """

    shape: Shape
    tail: str = "x"
    block: int = 0
    start: str = "x"
    nodes: list[LayerSpec | GlueOp] = field(default_factory=list)
    inputs: list[tuple[str, Shape]] = field(default_factory=list)
    _used: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs.append((self.tail, self.shape))

    def next_block(self, index: int) -> Chain:
        self.block, self.start = index, self.tail
        return self

    def conv(self, channels: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> Chain:
        """A convolution with bias whose padding keeps the size, but for the stride."""
        cin, height, width = self.shape
        out = (channels, -(-height // stride), -(-width // stride))
        depth, rows = cin // groups * kernel**2, out[1] * out[2]
        name = self._name("depthwise" if groups == cin else "conv")
        weight = WeightSpec(f"{name}.weight", (channels, cin // groups, kernel, kernel), 0)
        gemm = Gemm(rows, channels // groups, depth, groups)
        layer = LayerSpec(
            name, "conv2d", (self.tail,), (self.shape,), out, channels * depth * rows, gemm, weight, channels, groups
        )
        return self._append(layer)

    def depthwise(self, kernel: int = 3, *, stride: int = 1) -> Chain:
        return self.conv(self.shape[0], kernel, stride=stride, groups=self.shape[0])

    def linear(self, columns: int) -> Chain:
        """A linear layer with bias on the last axis."""
        rows, depth = elements(self.shape[:-1]), self.shape[-1]
        name, out = self._name("linear"), (*self.shape[:-1], columns)
        weight = WeightSpec(f"{name}.weight", (columns, depth), 0)
        gemm = Gemm(rows, columns, depth, 1)
        return self._append(
            LayerSpec(name, "linear", (self.tail,), (self.shape,), out, rows * depth * columns, gemm, weight, columns)
        )

    def embedding(self, rows: int, width: int, vocabulary: int = 4096) -> Chain:
        """Rows of a table, looked up by indices of their own."""
        name = self._name("embedding")
        self.inputs.append((f"{name}.ids", (rows,)))
        weight = WeightSpec(f"{name}.weight", (vocabulary, width), 0)
        layer = LayerSpec(name, "embedding", (f"{name}.ids",), ((rows,),), (rows, width), 0, None, weight)
        return self._append(layer)

    def scores(self, query: str, key: str, heads: int) -> Chain:
        """The first attention product, of rows: (tokens, width) twice to (heads, tokens, tokens)."""
        tokens, width = self._shape_of(query)
        return self._product((query, key), heads, (tokens, tokens, width // heads))

    def weighted(self, values: str, heads: int) -> Chain:
        """The second attention product, of scores with rows: (heads, tokens, width / heads)."""
        tokens, width = self._shape_of(values)
        return self._product((self.tail, values), heads, (tokens, width // heads, tokens))

    def glue(self, kind: str, *others: str, shape: Shape | None = None) -> Chain:
        """An op that reads the last node and others. shape: of the result, if not that of the last node."""
        shapes = [self.shape, *(self._shape_of(name) for name in others)]
        name = self._name(kind)
        return self._append(GlueOp(name, kind, (self.tail, *others), tuple(shapes), shape or self.shape))

    def merged(self, heads: int) -> Chain:
        """The heads side by side again: (heads, tokens, depth) to (tokens, heads x depth)."""
        _, tokens, depth = self.shape
        name, out = self._name("reshape"), (tokens, heads, depth)
        self._append(GlueOp(name, "reshape", (self.tail,), (out,), out))
        self.shape = (tokens, heads * depth)
        return self

    def extra_input(self, shape: Shape) -> str:
        """A further input of the network; its name."""
        name = self._name("input")
        self.inputs.append((name, shape))
        return name

    def at(self, name: str) -> Chain:
        """Go on from an earlier node or input."""
        self.tail, self.shape = name, self._shape_of(name)
        return self

    def workload(self, name: str, outputs: Sequence[str] = ()) -> Workload:
        used = {source for node in self.nodes for source in node.inputs}
        inputs = tuple((n, s) for n, s in self.inputs if n in used)
        return Workload(name, inputs, tuple(self.nodes), tuple(outputs) or (self.tail,))

    def _product(self, inputs: tuple[str, str], heads: int, sizes: tuple[int, int, int]) -> Chain:
        m, n, k = sizes
        name, shapes = self._name("matmul"), ((heads, m, k), (heads, k, n))
        gemm = Gemm(m, n, k, heads)
        return self._append(LayerSpec(name, "matmul", inputs, shapes, (heads, m, n), heads * m * n * k, gemm))

    def _shape_of(self, name: str) -> Shape:
        for node in self.nodes:
            if node.name == name:
                return node.output_shape
        return dict(self.inputs)[name]

    def _append(self, node: LayerSpec | GlueOp) -> Chain:
        self.nodes.append(node)
        self.tail, self.shape = node.name, node.output_shape
        return self

    def _name(self, label: str) -> str:
        """`3.conv`, then `3.conv_1`: by what it is and the block it is in, whatever else the block holds."""
        key = f"{self.block}.{label}"
        self._used[key] = self._used.get(key, -1) + 1
        return key if not self._used[key] else f"{key}_{self._used[key]}"


Block = Callable[[Chain], object]
"""Appends the nodes of one block to a chain."""


def chain(name: str, shape: Shape, blocks: Sequence[Block]) -> Workload:
    """The blocks one after the other, each numbered."""
    made = Chain(shape)
    for index, block in enumerate(blocks):
        block(made.next_block(index))
    return made.workload(name)


def uniform(workload: Workload, fmt: str) -> Bench:
    return Bench(workload, (fmt,) * len(workload.layers))


def repeated(name: str, shape: Shape, block: Block, times: int, fmt: str) -> Case:
    """A block that can follow itself, as what all but the first take."""
    longer, once = (chain(f"{name} x{n}", shape, [block] * n) for n in (times, 1))
    return within(name, longer, once, fmt)


def within(name: str, longer: Workload, shorter: Workload, fmt: str, ends: tuple[str, ...] = ("",)) -> Case:
    """What the longer workload has more, of nodes whose name ends so; what they share has the same names in both."""
    shared = {node.name for node in shorter.nodes}
    more = frozenset(node.name for node in longer.nodes if node.name not in shared and node.name.endswith(ends))
    return Case(f"{name} {fmt}", uniform(longer, fmt), ((1.0, uniform(shorter, fmt)),), more)


def between(name: str, before: tuple[Shape, Block], blocks: Sequence[Block], after: Block, fmt: str) -> Case:
    """Blocks that change the shape, between one block of the shape before and one of the shape after.

    Half of two blocks before and half of two after cancel what bounds the blocks, and the ends of the network.
    """
    shape, first = before
    longer = Chain(shape)
    first(longer.next_block(0))
    bounds = {node.name for node in longer.nodes}
    for index, block in enumerate(blocks, start=1):
        block(longer.next_block(index))
    nodes, end = frozenset(node.name for node in longer.nodes) - bounds, longer.shape
    after(longer.next_block(len(blocks) + 1))
    halves = (chain(f"{name}, before", shape, [first] * 2), chain(f"{name}, after", end, [after] * 2))
    minus = tuple((0.5, uniform(half, fmt)) for half in halves)
    return Case(f"{name} {fmt}", uniform(longer.workload(name), fmt), minus, nodes)
