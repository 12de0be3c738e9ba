"""The kernels that are timed: what convolutional networks and small transformers are made of, at a spread of sizes.

Sizes are generic: sides are those of a 224-pixel image after strides of two, channels and widths about log-spaced
multiples of 8. No network's layers were looked at, and those that the results are checked on have none of these.
"""

from __future__ import annotations

from collections.abc import Iterator

from haq.measure import patterns
from haq.measure.chain import Bench, Case, between, chain, repeated, uniform, within
from haq.measure.patterns import TIMES

STREAMED = 1024
"""Rows and columns of the weights that are streamed: 4 MiB in fp32."""

LARGE = 4096
"""Rows and columns of weights that keep a GPU busy for longer than it takes to start a kernel: 64 MiB in fp32."""

STREAMED_PARTS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 2.0)
"""Of a cache, what is streamed."""


def cases(fmt: str) -> tuple[Case, ...]:
    """Every case in one format of weights and activations."""
    return tuple(case for group in _GROUPS for case in group(fmt))


def linear_cases(fmt: str, least_rows: int) -> tuple[Case, ...]:
    """Linear layers alone, on so many rows at least, for a format in which only these have a kernel."""
    return tuple(c for c in _linears(fmt) if all(n.gemm and n.gemm.m >= least_rows for n in c.longer.workload.layers))


def large_streams() -> tuple[tuple[int, Bench], ...]:
    """(bytes, bench): rows of one that read far more weights than a cache holds, in few and large layers."""
    chains = ((n * 4 * LARGE**2, patterns.streamed(LARGE, n, paused=False)) for n in (4, 8))
    return tuple((size, uniform(workload, "fp32")) for size, workload in chains)


def streams(cache_bytes: int, *, paused: bool) -> tuple[tuple[int, Bench], ...]:
    """(bytes, bench): rows of one that read so many bytes of weights, up to twice the size of a cache.

    paused: behind a few milliseconds of work on little data, after which others may have taken the cache; the first
    bench is then that work alone.
    """
    share = 4 * STREAMED**2
    counts = dict.fromkeys(max(1, round(part * cache_bytes / share)) for part in STREAMED_PARTS)
    chains = ((n * share, patterns.streamed(STREAMED, n, paused=paused)) for n in (*([0] if paused else []), *counts))
    return tuple((size, uniform(workload, "fp32")) for size, workload in chains)


def smallest() -> Bench:
    """What takes hardly longer than starting an inference."""
    return uniform(patterns.smallest(), "fp32")


def cold_cases(fmt: str, cache_bytes: int) -> tuple[Case, ...]:
    """Layers whose weights together are twice as large as a cache, so that each comes from memory."""
    width = 4 if fmt == "fp32" else 1
    found = []
    for name, shape, block, weights in (
        ("conv 1x1, 896 at 7", (896, 7, 7), patterns.conv(896), 896**2),
        ("conv 3x3, 448 at 7", (448, 7, 7), patterns.conv(448, 3), 9 * 448**2),
        ("linear, 32 of 896", (32, 896), patterns.linear(896), 896**2),
    ):
        times = 2 + 2 * cache_bytes // (width * weights)
        found.append(repeated(f"{name}, cold", shape, block, times, fmt))
    return tuple(found)


def convert_cases(wide: str, narrow: str) -> tuple[Case, ...]:
    """Changes between two formats."""
    found = []
    for channels, side in (
        (80, 112),
        (16, 112),
        (48, 56),
        (32, 28),
        (128, 28),
        (96, 14),
        (384, 14),
        (160, 7),
        (640, 7),
    ):
        name, block = f"change at {channels}x{side}x{side}", patterns.conv(channels, 3, groups=channels)
        found.append(patterns.alternating(name, (channels, side, side), block, (wide, narrow)))
    for rows, width in ((32, 256), (128, 256), (128, 1024), (256, 768)):
        name, block = f"change at {rows}x{width}", patterns.bottleneck(width)
        found.append(patterns.alternating(name, (rows, width), block, (wide, narrow)))
    return tuple(found)


def _convolutions(fmt: str) -> Iterator[Case]:
    """With ReLU: 1x1, 3x3 and 5x5 of equal channels, pairs that widen and narrow, with strides, in groups, first."""
    for kernel, channels, side in (
        (1, 16, 112), (1, 32, 56), (1, 80, 56), (1, 64, 28), (1, 192, 28), (1, 96, 14), (1, 384, 14), (1, 160, 7),
        (1, 640, 7), (3, 16, 112), (3, 16, 56), (3, 48, 56), (3, 32, 28), (3, 96, 28), (3, 48, 14), (3, 192, 14),
        (3, 96, 7), (3, 384, 7), (5, 32, 28), (5, 80, 14), (1, 24, 112), (1, 56, 28), (1, 200, 14), (1, 456, 7),
        (3, 24, 56), (3, 40, 28), (3, 104, 14), (5, 24, 28),
    ):  # fmt: skip
        name = f"conv {kernel}x{kernel}, {channels} at {side}"
        yield repeated(name, (channels, side, side), patterns.conv(channels, kernel), TIMES, fmt)
    for narrow, wide, side in (
        (16, 80, 56), (32, 160, 28), (80, 320, 14), (160, 640, 7), (288, 1152, 7), (24, 136, 56), (56, 200, 28),
        (40, 312, 14),
    ):  # fmt: skip
        block = patterns.steps(patterns.conv(wide), patterns.conv(narrow))
        yield repeated(f"conv 1x1, {narrow} to {wide} at {side}", (narrow, side, side), block, TIMES, fmt)
    for kernel, channels, side, times in ((3, 24, 112, 3), (3, 80, 28, 2), (1, 48, 56, 3), (1, 160, 28, 2)):
        strided = [patterns.conv(channels * 2 ** (n + 1), kernel, stride=2) for n in range(times)]
        before = (channels, side, side), patterns.conv(channels)
        name = f"conv {kernel}x{kernel} by 2, {channels} at {side}"
        yield between(name, before, strided, patterns.conv(channels * 2**times), fmt)
    for channels, groups, side in ((64, 4, 28), (192, 12, 14), (160, 5, 14)):
        block = patterns.conv(channels, 3, groups=groups)
        yield repeated(f"conv 3x3, {channels} in {groups} groups at {side}", (channels, side, side), block, TIMES, fmt)
    for kernel, channels in ((3, 24), (3, 48), (7, 48), (7, 80)):
        longer, once = (patterns.first_layers(kernel, channels, n) for n in (3, 1))
        yield within(f"first conv {kernel}x{kernel}, 3 to {channels}", longer, once, fmt, (".conv",))


def _depthwise(fmt: str) -> Iterator[Case]:
    for kernel, channels, side in (
        (3, 16, 112), (3, 48, 56), (3, 160, 56), (3, 48, 28), (3, 160, 28), (3, 384, 14), (3, 192, 7), (3, 768, 7),
        (5, 32, 56), (5, 64, 28), (5, 160, 14), (5, 384, 14), (5, 320, 7), (5, 768, 7), (7, 80, 28), (7, 384, 7),
        (3, 24, 112), (3, 56, 56), (3, 104, 28), (3, 200, 14), (3, 312, 7), (5, 56, 56), (5, 104, 28), (5, 136, 14),
        (5, 456, 7),
    ):  # fmt: skip
        block = patterns.conv(channels, kernel, groups=channels)
        yield repeated(f"depthwise {kernel}x{kernel}, {channels} at {side}", (channels, side, side), block, TIMES, fmt)
    for kernel, channels, side in ((3, 32, 112), (3, 160, 56), (5, 64, 56), (5, 320, 28), (3, 56, 112), (5, 104, 56)):
        strided = [patterns.conv(channels, kernel, stride=2, groups=channels)] * 2
        before = (channels, side, side), patterns.conv(channels, 3, groups=channels)
        name = f"depthwise {kernel}x{kernel} by 2, {channels} at {side}"
        yield between(name, before, strided, patterns.conv(channels, 3, groups=channels), fmt)


def _linears(fmt: str) -> Iterator[Case]:
    for rows, width in (
        (1, 256), (1, 640), (1, 1024), (1, 2048), (16, 512), (32, 256), (32, 768), (64, 512), (128, 128), (128, 256),
        (128, 512), (128, 768), (256, 256), (256, 768),
    ):  # fmt: skip
        shape = (width,) if rows == 1 else (rows, width)
        yield repeated(f"linear, {rows} of {width}", shape, patterns.linear(width), TIMES, fmt)
    for rows, narrow, wide in ((1, 320, 1280), (32, 512, 2048), (128, 256, 1024), (128, 512, 2048), (256, 256, 1024)):
        block = patterns.steps(patterns.linear(wide), patterns.linear(narrow))
        shape = (narrow,) if rows == 1 else (rows, narrow)
        yield repeated(f"linear, {rows} of {narrow} to {wide}", shape, block, TIMES - 1, fmt)


def _attention(fmt: str) -> Iterator[Case]:
    """Both products with the cutting into heads, then what stands between them, each by what it adds."""
    for heads, tokens, depth in ((4, 64, 32), (8, 64, 64), (8, 128, 32), (8, 128, 64), (16, 128, 32), (8, 256, 32)):
        where = f"{heads} heads of {depth}, {tokens} tokens"
        rows = (tokens, heads * depth)
        linears = chain(f"linears {where}", rows, [patterns.steps(*[patterns.bottleneck(rows[1])] * 4)] * 2)
        products, scores, masked = (
            patterns.attentions(rows, heads, inner) for inner in ((), ("mul", "softmax"), ("mul", "add", "softmax"))
        )
        yield within(f"products of {where}", products, linears, fmt)
        yield within(f"scaling and softmax of {where}", scores, products, fmt)
        yield within(f"mask of {where}", masked, scores, fmt)


def _glue(fmt: str) -> Iterator[Case]:
    for channels, side in ((48, 112), (32, 112), (48, 56), (80, 28), (320, 28), (160, 14), (320, 7)):
        shape, at = (channels, side, side), f"{channels}x{side}x{side}"
        plain, apart, ungated = (
            patterns.with_glue(shape, ()),
            patterns.branches_joined(shape, joined=False),
            patterns.gated(shape, gate=False),
        )
        yield within(f"hardswish at {at}", patterns.with_glue(shape, ("smooth",)), plain, fmt)
        yield within(f"add at {at}", patterns.with_glue(shape, ("add",)), plain, fmt)
        joined = patterns.branches_joined(shape, joined=True)
        yield within(f"concat at {at}", joined, apart, fmt, (".reshape",))
        yield within(f"squeeze and excite at {at}", patterns.gated(shape, gate=True), ungated, fmt)
    for channels, side, times in ((32, 112, 2), (96, 56, 2), (320, 28, 1)):
        pools = [patterns.pool] * times
        before = (channels, side, side), patterns.conv(channels)
        yield between(f"max pool 3x3 by 2, {channels} at {side}", before, pools, patterns.conv(channels), fmt)
    for rows, width in ((32, 256), (128, 256), (128, 512), (128, 1024), (256, 768)):
        wide, at = (rows, width), f"{rows}x{width}"
        plain, normed = patterns.with_glue(wide, ()), patterns.with_glue(wide, ("norm",))
        yield within(f"gelu at {at}", patterns.with_glue(wide, ("smooth",)), plain, fmt)
        yield within(f"norm at {at}", normed, plain, fmt)
        yield within(f"add before norm at {at}", patterns.with_glue(wide, ("add", "norm")), normed, fmt)
    for rows, width in ((64, 256), (128, 512)):
        longer, once = (patterns.embeddings(rows, width, n) for n in (4, 1))
        yield within(f"look-up and add, {rows} of {width}", longer, once, fmt)


_GROUPS = (_convolutions, _depthwise, _linears, _attention, _glue)
