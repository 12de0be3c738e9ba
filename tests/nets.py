"""Small workloads, written down by hand, whose costs a reader can redo."""

from haq.precision import Assignment
from haq.workload import Gemm, GlueOp, LayerSpec, WeightSpec, Workload


def conv(name, source, cin, cout, side, kernel=3, groups=1, bias=0):
    """A convolution on side x side that keeps the size."""
    k = cin // groups * kernel**2
    return LayerSpec(
        name, "conv2d", (source,), ((cin, side, side),), (cout, side, side), cout * k * side**2,
        Gemm(side**2, cout // groups, k, groups),
        WeightSpec(f"{name}.weight", (cout, cin // groups, kernel, kernel), 0), bias, groups,
    )  # fmt: skip


def linear(name, source, cin, cout, rows=1, bias=0):
    """A linear layer on (rows, cin)."""
    shape_in, shape_out = ((cin,), (cout,)) if rows == 1 else ((rows, cin), (rows, cout))
    return LayerSpec(
        name, "linear", (source,), (shape_in,), shape_out, rows * cin * cout, Gemm(rows, cout, cin, 1),
        WeightSpec(f"{name}.weight", (cout, cin), 0), bias,
    )  # fmt: skip


def product(name, left, right, m, n, k, heads):
    """An attention product."""
    return LayerSpec(
        name, "matmul", (left, right), ((heads, m, k), (heads, k, n)), (heads, m, n), heads * m * n * k,
        Gemm(m, n, k, heads),
    )  # fmt: skip


def relu(name, source, shape):
    return GlueOp(name, "activation", (source,), (shape,), shape)


def residual():
    """conv a -> relu -> conv b, + a's relu -> pool -> linear c."""
    shape = (64, 8, 8)
    nodes = (
        conv("a", "x", 3, 64, 8, bias=64),
        relu("relu", "a", shape),
        conv("b", "relu", 64, 64, 8, bias=64),
        GlueOp("add", "add", ("b", "relu"), (shape, shape), shape),
        GlueOp("pool", "reduce", ("add",), (shape,), (64,)),
        linear("c", "pool", 64, 10, bias=10),
    )
    return Workload("residual", (("x", (3, 8, 8)),), nodes, ("c",))


def attention():
    """Two projections and a product, 16 tokens of 64."""
    nodes = (
        LayerSpec(
            "embed", "embedding", ("ids",), ((16,),), (16, 64), 0, None, WeightSpec("embed.weight", (1000, 64), 0)
        ),
        linear("q", "embed", 64, 64, 16),
        linear("k", "embed", 64, 64, 16),
        product("attn/matmul_0", "q", "k", 16, 16, 16, 4),
        GlueOp("softmax", "softmax", ("attn/matmul_0",), ((4, 16, 16),), (4, 16, 16)),
    )
    return Workload("attention", (("ids", (16,)),), nodes, ("softmax",), 64)


def uniform(workload, bits):
    return Assignment.uniform(workload.layer_names, bits)
