"""Which glue kind each aten op is, and which ops cost nothing; an op in neither table is reported as unsupported."""

from __future__ import annotations

from collections.abc import Mapping

_BY_KIND = {
    "add": "add add_ sub sub_ rsub",
    "mul": "mul mul_ div div_",
    "activation": (
        "relu relu_ gelu gelu_ silu silu_ hardswish hardswish_ hardsigmoid hardsigmoid_ sigmoid sigmoid_ tanh tanh_ "
        "leaky_relu leaky_relu_ elu elu_ hardtanh hardtanh_ clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ "
        "softplus mish mish_ threshold threshold_ log_sigmoid_forward glu _prelu_kernel celu celu_ relu6 selu"
    ),
    "norm": (
        "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
        "miopen_batch_norm batch_norm_elemt native_layer_norm native_group_norm _fused_rms_norm"
    ),
    "softmax": "_softmax _log_softmax _safe_softmax",
    "pool": (
        "max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool1d avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d"
    ),
    "reduce": (
        "mean sum amax amin max min var std var_mean std_mean argmax argmin prod any all cumsum topk sort "
        "linalg_vector_norm logsumexp norm"
    ),
    "reshape": (
        "cat stack clone constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d roll "
        "flip repeat repeat_interleave upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
        "pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im copy copy_ slice_scatter select_scatter "
        "slice_backward _reshape_copy view_copy expand_copy permute_copy unfold_copy grid_sampler_2d "
        "split_with_sizes_copy"
    ),
    "gather": "index index_select gather scatter scatter_ index_put index_put_ index_add take one_hot nonzero",
    "elementwise": (
        "exp exp_ log sqrt sqrt_ rsqrt pow abs neg reciprocal erf sin cos where masked_fill masked_fill_ eq ne lt gt "
        "ge le logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not bitwise_xor maximum minimum "
        "_to_copy floor ceil round sign lerp addcmul addcdiv expm1 log1p log2 exp2 square isnan isinf nan_to_num atan2 "
        "remainder fmod floor_divide tril triu fill fill_ zero_"
    ),
}

GLUE_KIND_OF: Mapping[str, str] = {f"aten.{op}": kind for kind, ops in _BY_KIND.items() for op in ops.split()}
"""aten op (without overload) -> one of GLUE_KINDS."""

_CONSTANT = (
    "empty_like zeros_like ones_like full_like new_zeros new_ones new_full new_empty new_empty_strided rand_like "
    "randn_like scalar_tensor lift_fresh_copy"
)
CONSTANT_OPS = frozenset(f"aten.{op}" for op in _CONSTANT.split())
"""Ops that read only the shape of their input: what they return does not depend on the data."""

_FREE = "detach alias lift_fresh _local_scalar_dense sym_size is_same_size item dropout native_dropout _unsafe_view"
FREE_OPS = frozenset(f"aten.{op}" for op in _FREE.split())
"""Ops that move and compute nothing; `_unsafe_view` is a view that autograd must not know of."""
