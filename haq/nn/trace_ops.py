"""Which glue kind each aten op is, and which ops cost nothing; an op in no table here is reported as unsupported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BY_KIND = {
    "add": "add sub rsub",
    "mul": "mul div",
    "activation": "relu leaky_relu hardtanh clamp clamp_min clamp_max threshold _prelu_kernel relu6 rrelu",
    "smooth": (
        "gelu silu hardswish hardsigmoid sigmoid tanh elu softplus mish log_sigmoid_forward glu celu selu hardshrink "
        "softshrink"
    ),
    "norm": (
        "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
        "miopen_batch_norm batch_norm_elemt native_layer_norm native_group_norm _fused_rms_norm"
    ),
    "softmax": "_softmax _log_softmax _safe_softmax",
    "pool": (
        "max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool3d max_pool1d avg_pool1d avg_pool2d "
        "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d max_unpool2d"
    ),
    "reduce": (
        "mean sum amax amin aminmax max min var std var_mean std_mean argmax argmin prod any all cumsum cumprod topk "
        "sort linalg_vector_norm logsumexp norm count_nonzero median"
    ),
    "reshape": (
        "cat stack clone constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d roll flip repeat repeat_interleave pixel_shuffle pixel_unshuffle "
        "channel_shuffle im2col col2im copy slice_scatter select_scatter diagonal_scatter _reshape_copy view_copy "
        "expand_copy permute_copy unfold_copy split_with_sizes_copy grid_sampler_2d grid_sampler_3d upsample_linear1d "
        "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    ),
    "gather": (
        "index index_select gather scatter scatter_add index_put index_add index_copy index_fill take one_hot nonzero "
        "masked_select masked_scatter"
    ),
    "elementwise": (
        "exp log sqrt rsqrt pow abs neg reciprocal erf erfc sin cos tan asin acos atan sinh cosh where masked_fill eq "
        "ne lt gt ge le logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor "
        "maximum minimum fmax fmin _to_copy floor ceil round trunc frac sign sgn lerp addcmul addcdiv expm1 log1p log2 "
        "log10 exp2 square isnan isinf isfinite nan_to_num atan2 remainder fmod floor_divide tril triu fill zero "
        "bernoulli"
    ),
}
"""Ops by name; the in-place form (`relu_`) is the same kind."""

GLUE_KIND_OF: Mapping[str, str] = {f"aten.{op}": kind for kind, ops in _BY_KIND.items() for op in ops.split()}
"""aten op (without overload, out of place) -> one of GLUE_KINDS."""

_CONSTANT = (
    "empty_like zeros_like ones_like full_like new_zeros new_ones new_full new_empty new_empty_strided rand_like "
    "randn_like scalar_tensor lift_fresh_copy"
)
CONSTANT_OPS = frozenset(f"aten.{op}" for op in _CONSTANT.split())
"""Ops that read only the shape of their input: what they return does not depend on the data."""

_FREE = (
    "detach alias lift_fresh _local_scalar_dense sym_size is_same_size equal item dropout _unsafe_view "
    "detach_ transpose_ t_ squeeze_ unsqueeze_ swapaxes_ swapdims_ as_strided_"
)
FREE_OPS = frozenset(f"aten.{op}" for op in _FREE.split())
"""Ops that move and compute nothing; `_unsafe_view` is a view that autograd must not know of."""


def op_name(func: Any) -> str:
    """`aten.add_` out of the overload `aten.add_.Tensor`."""
    return str(func).removesuffix(f".{func._overloadname}")


def glue_kind(op: str) -> str | None:
    """The op's glue kind, in place or not; None for an op that is no glue."""
    return GLUE_KIND_OF.get(op) or GLUE_KIND_OF.get(op.removesuffix("_"))
