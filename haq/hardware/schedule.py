"""The static schedule of a workload on a target: which nodes run as one kernel, and what each kernel reads and writes.

It depends on the workload and the profile only, never on an assignment: costs are then a sum over kernels and over
pairs of layers, and a table of them is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from haq.hardware.schema import HardwareProfile
from haq.workload import GlueOp, LayerSpec, Workload, elements


@dataclass(frozen=True)
class Read:
    """One tensor that a kernel reads. source: the kernel that wrote it, by index; absent for an input of the network.

    elements: per sample. joins: the operand of a glue op that is fused into the kernel, such as a residual addition.
    inside: written and read inside one fused attention kernel. rescaled: an operand of a concatenation that others read
    too, so that it cannot take the concatenation's scale. in_place: already where a concatenation wants it.
    left_in_floats: written by glue that runs in floats whatever its neighbours execute.
    """

    source: int | None
    elements: int
    joins: bool = False
    inside: bool = False
    rescaled: bool = False
    in_place: bool = False
    left_in_floats: bool = False


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one. anchor: the layer whose activation format the kernel works in (absent: fp32 glue).

    head: the layer that it computes, absent for glue of its own. writes: elements per sample. last_use: index of the
    last kernel that reads the result. stays_inside: the result never leaves a fused attention kernel, whose second
    half reads it. kind: of the node that it begins with. beside: the kind of the layer that is its anchor.
    runs_in_floats: glue without an integer kernel. float_host: the convolution's kernel, by index, that computes it
    along where it works in floats: another pass over its elements, but none through memory.
    """

    name: str
    head: LayerSpec | None
    anchor: str | None
    reads: tuple[Read, ...]
    writes: int
    last_use: int
    stays_inside: bool = False
    kind: str = ""
    beside: str = ""
    runs_in_floats: bool = False
    float_host: int | None = None

    @property
    def is_free(self) -> bool:
        """A concatenation whose operands are all in place."""
        return bool(self.reads) and all(read.in_place for read in self.reads)

    @property
    def continues(self) -> bool:
        """The second half of a fused attention kernel."""
        return any(read.inside for read in self.reads)

    @property
    def is_lookup(self) -> bool:
        """An embedding, whose input is an index and has no format to convert."""
        return self.head is not None and self.head.kind == "embedding"


@dataclass
class _Draft:
    """A kernel while nodes are still fused into it."""

    name: str
    head: LayerSpec | None
    anchor: str | None
    tail: str
    kinds: list[str]
    reads: list[tuple[str, int, bool]]
    writes: int


def schedule(workload: Workload, profile: HardwareProfile) -> tuple[Kernel, ...]:
    """The kernels in execution order.

    A glue op of a kind that the target fuses joins the kernel of its latest producer if nothing else reads that; the
    other operands become reads of that kernel.
    """
    drafts: list[_Draft] = []
    made_by: dict[str, int] = {}
    for node in workload.nodes:
        sources = list(zip(node.inputs, _input_elements(node), strict=True))
        host = _host(node, drafts, made_by, workload, profile) if isinstance(node, GlueOp) else None
        if host is not None:
            draft = drafts[host]
            draft.reads += [(name, count, True) for name, count in sources if name != draft.tail]
            draft.tail, draft.writes = node.name, elements(node.output_shape)
            draft.kinds.append(node.kind)
            made_by[node.name] = host
            continue
        head = node if isinstance(node, LayerSpec) else None
        anchor = head.name if head else _anchor(node.inputs, drafts, made_by)
        reads = [(name, count, False) for name, count in sources]
        drafts.append(_Draft(node.name, head, anchor, node.name, [node.kind], reads, elements(node.output_shape)))
        made_by[node.name] = len(drafts) - 1
    return _finished(drafts, made_by, workload, profile)


def _input_elements(node: LayerSpec | GlueOp) -> list[int]:
    """Elements read from each producer; an operand that several nodes wrote counts for each of them."""
    counts = [elements(shape) for shape in node.input_shapes]
    if len(counts) == len(node.inputs):
        return counts
    return [max(counts, default=0)] * len(node.inputs)


def _host(
    node: GlueOp, drafts: Sequence[_Draft], made_by: dict[str, int], workload: Workload, profile: HardwareProfile
) -> int | None:
    """The kernel that the glue op runs inside, if any."""
    candidates = [made_by[name] for name in node.inputs if name in made_by]
    if not candidates:
        return None
    host = max(candidates)
    draft = drafts[host]
    fused = profile.fusion.layer if draft.head is not None else profile.fusion.glue
    return host if node.kind in fused and _is_private(draft, node.name, node.inputs, workload) else None


def _is_private(draft: _Draft, reader: str, inputs: Sequence[str], workload: Workload) -> bool:
    """Whether nothing but the reader sees the kernel's result."""
    tail = draft.tail
    return tail in inputs and workload.consumers[tail] == (reader,) and tail not in workload.outputs


def _anchor(inputs: tuple[str, ...], drafts: Sequence[_Draft], made_by: dict[str, int]) -> str | None:
    return next((anchor for n in inputs if n in made_by and (anchor := drafts[made_by[n]].anchor)), None)


def _finished(
    drafts: Sequence[_Draft], made_by: dict[str, int], workload: Workload, profile: HardwareProfile
) -> tuple[Kernel, ...]:
    inside = _fused_attention(drafts, made_by, workload) if profile.attention is not None else frozenset()
    in_floats = [d.head is None and d.kinds[0] in profile.fusion.float_glue for d in drafts]

    def read(draft: _Draft, name: str, count: int, joins: bool) -> Read:
        source = made_by.get(name)
        is_operand = draft.head is None and draft.kinds[0] == "reshape" and len(draft.reads) > 1 and not joins
        is_shared = len(workload.consumers.get(name, ())) > 1
        return Read(
            source,
            count,
            joins,
            inside=name in inside,
            rescaled=is_operand and is_shared,
            in_place=profile.fusion.in_place and is_operand and not is_shared and source is not None,
            left_in_floats=source is not None and in_floats[source],
        )

    reads = [tuple(read(draft, *each) for each in draft.reads) for draft in drafts]
    last_use = list(range(len(drafts)))
    for index, kernel_reads in enumerate(reads):
        for each in kernel_reads:
            if each.source is not None:
                last_use[each.source] = index
    for name in workload.outputs:
        if name in made_by:
            last_use[made_by[name]] = len(drafts) - 1
    kinds = {layer.name: layer.kind for layer in workload.layers}
    return tuple(
        Kernel(
            d.name, d.head, d.anchor, r, d.writes, last, d.tail in inside, d.kinds[0],
            kinds[d.anchor] if d.anchor else "", floats, _float_host(d, drafts, made_by, workload, profile),
        )
        for d, r, last, floats in zip(drafts, reads, last_use, in_floats, strict=True)
    )  # fmt: skip


def _float_host(
    draft: _Draft, drafts: Sequence[_Draft], made_by: dict[str, int], workload: Workload, profile: HardwareProfile
) -> int | None:
    """The convolution that computes the glue along where it works in floats."""
    sources = [made_by[name] for name, _, _ in draft.reads if name in made_by]
    if draft.head is not None or draft.kinds[0] not in profile.fusion.float_conv or not sources:
        return None
    host = drafts[max(sources)]
    is_conv = host.head is not None and host.head.kind.startswith("conv")
    names = [name for name, _, _ in draft.reads]
    return max(sources) if is_conv and _is_private(host, draft.name, names, workload) else None


def _fused_attention(drafts: Sequence[_Draft], made_by: dict[str, int], workload: Workload) -> frozenset[str]:
    """The results of first products that only a second product reads, through a softmax: they stay on the chip."""
    found = set()
    for draft in drafts:
        if draft.head is None or draft.head.kind != "matmul":
            continue
        for name, _, _ in draft.reads:
            first = drafts[made_by[name]] if name in made_by else None
            if first is None or first.head is None or first.head.kind != "matmul" or "softmax" not in first.kinds:
                continue
            if _is_private(first, draft.name, (name,), workload):
                found.add(name)
    return frozenset(found)
