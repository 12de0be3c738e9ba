"""Formats and quantizers against torch's own kernels, torch.ao, numpy integer arithmetic and hand arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded import by_channel, quantize_weight

from haq.errors import InputError
from haq.nn.quantizers import (
    ActivationQuantizer,
    affine_parameters,
    cast,
    check_finite,
    executed_weight,
)
from haq.precision import FORMATS, Precision

FLOATS = st.floats(-1e6, 1e6, width=32)
INTEGERS = st.sampled_from(["int4", "int8", "int16"])


def activation_quantizer(low: float, high: float, name: str = "int8") -> ActivationQuantizer:
    fmt = FORMATS[name]
    scale, zero_point = affine_parameters(np.array([low]), np.array([high]), 2**fmt.bits - 1)
    return ActivationQuantizer(fmt, float(scale[0]), int(zero_point[0]))


def test_fp16_overflows_to_infinity_above_its_largest_number_and_keeps_ten_mantissa_bits() -> None:
    x = torch.tensor([65504.0, 65519.0, 65520.0, -1e5, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 2**-24])
    expected = [65504.0, 65504.0, float("inf"), float("-inf"), 1.0, 1 + 2**-9, 0.0, 2**-24]
    assert cast(x, FORMATS["fp16"]).tolist() == expected


def test_bf16_keeps_fp32s_range_and_seven_mantissa_bits_rounding_half_to_even() -> None:
    x = torch.tensor([1e38, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20])
    assert cast(x, FORMATS["bf16"])[1:].tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    assert torch.isfinite(cast(x, FORMATS["bf16"])).all()


def test_fp32_returns_the_tensor_itself() -> None:
    x = torch.randn(3)
    assert cast(x, FORMATS["fp32"]) is x


def test_fp16_agrees_with_numpy_half_precision() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 100
    assert np.array_equal(cast(x, FORMATS["fp16"]).numpy(), x.numpy().astype(np.float16).astype(np.float32))


def test_an_int8_activation_range_of_minus_1_to_1_55_has_scale_one_hundredth_and_zero_at_100() -> None:
    quantizer = activation_quantizer(-1.0, 1.55)
    assert quantizer.scale == pytest.approx(0.01)
    assert quantizer.zero_point == 100
    x = torch.tensor([0.0, 0.014, -2.0, 9.0, float("inf"), float("-inf")])
    assert quantizer(x).tolist() == pytest.approx([0.0, 0.01, -1.0, 1.55, 1.55, -1.0])
    assert quantizer.codes(x).tolist() == [100, 101, 0, 255, 255, 0]


def test_nan_stays_nan_so_that_a_broken_candidate_is_seen() -> None:
    assert torch.isnan(activation_quantizer(-1.0, 1.0)(torch.tensor([float("nan")]))).all()


@pytest.mark.parametrize("name", ["int4", "int8", "int16"])
def test_activations_are_bit_identical_to_torchs_fused_fake_quantize(name: str) -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * 2
    quantizer = activation_quantizer(-3.7, 4.1, name)
    levels = 2 ** FORMATS[name].bits - 1
    expected = torch.fake_quantize_per_tensor_affine(x, quantizer.scale, quantizer.zero_point, 0, levels)
    assert torch.equal(quantizer(x), expected)
    codes = quantizer.codes(x)
    assert torch.equal((codes - quantizer.zero_point) * torch.tensor(quantizer.scale), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_affine_parameters_agree_with_torch_ao_minmax_observer() -> None:
    from torch.ao.quantization import MinMaxObserver

    for low, high in ((-1.0, 3.0), (0.0, 6.0), (-5.0, -1.0), (2.0, 7.0), (-1e-3, 1e-3)):
        observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
        observer(torch.tensor([low, high]))
        scale, zero_point = observer.calculate_qparams()
        ours = activation_quantizer(low, high)
        assert ours.scale == pytest.approx(float(scale), rel=1e-6)
        assert ours.zero_point == int(zero_point)


@given(st.lists(FLOATS, min_size=1, max_size=20), FLOATS, FLOATS, INTEGERS)
def test_activation_quantizers_keep_zero_are_idempotent_monotone_and_within_half_a_step(
    numbers: list[float], a: float, b: float, name: str
) -> None:
    quantizer = activation_quantizer(min(a, b), max(a, b), name)
    levels = 2 ** FORMATS[name].bits - 1
    x = torch.tensor(sorted(numbers))
    q = quantizer(x)
    assert quantizer(torch.zeros(1)).item() == 0.0
    assert torch.allclose(quantizer(q), q, rtol=1e-6, atol=0)
    assert bool((q.diff() >= 0).all())
    low, high = -quantizer.zero_point * quantizer.scale, (levels - quantizer.zero_point) * quantizer.scale
    inside = (x >= low) & (x <= high)
    # fp32 rounding of x / scale adds to the half step where |x| is many steps
    slack = x.abs() * 2**-22 + 1e-30
    assert bool(((q - x).abs() <= quantizer.scale / 2 + slack)[inside].all())
    codes = quantizer.codes(x)
    assert 0 <= int(codes.min()) <= int(codes.max()) <= levels


def test_constant_and_all_zero_and_huge_ranges_have_valid_scales() -> None:
    low = np.array([0.0, 5.0, -5.0, 1e-44, -3.4e38])
    high = np.array([0.0, 5.0, -5.0, 1e-44, 3.4e38])
    scale, zero_point = affine_parameters(low, high, 255)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert np.isfinite(np.float32(1) / scale).all()
    assert scale[0] == 1.0
    assert zero_point.tolist() == [0, 0, 255, 0, 128]
    constant = ActivationQuantizer(FORMATS["int8"], float(scale[1]), int(zero_point[1]))
    assert constant(torch.full((3,), 5.0)).tolist() == pytest.approx([5.0] * 3)


def test_int4_weights_use_codes_minus_7_to_7_with_one_scale_per_output_channel() -> None:
    weight = torch.tensor([[7.0, -3.5, 0.4], [0.0, 0.0, 0.0], [0.14, -0.08, 0.01]])
    stored = quantize_weight(weight, weight.abs().amax(1), 0, FORMATS["int4"])
    # -3.5 is half way between -3 and -4 and goes to the even code
    assert stored.codes.tolist() == [[7, -4, 0], [0, 0, 0], [7, -4, 0]]
    assert stored.scales.tolist() == pytest.approx([1.0, 1.0, 0.02])
    assert stored.codes.dtype == torch.int8


@pytest.mark.parametrize(("name", "axis"), [("int4", 0), ("int8", 0), ("int4", 1), ("int8", 1)])
def test_weights_agree_with_torchs_per_channel_fake_quantize_and_with_numpy(name: str, axis: int) -> None:
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    ranges = by_channel(weight, axis).abs().amax(1)
    stored = quantize_weight(weight, ranges, axis, FORMATS[name])
    largest = int(FORMATS[name].largest)
    zeros = torch.zeros_like(stored.scales, dtype=torch.int32)
    reference = torch.fake_quantize_per_channel_affine(weight, stored.scales, zeros, axis, -largest, largest)
    assert torch.allclose(stored.dequantize(), reference, rtol=1e-6, atol=0)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    scales = (ranges.numpy() / largest).reshape(shape)
    assert np.array_equal(stored.codes.numpy(), np.rint(weight.numpy() / scales).astype(np.int8))


@given(st.lists(FLOATS, min_size=2, max_size=12), st.sampled_from(["int4", "int8"]))
@settings(max_examples=60)
def test_weight_quantizers_are_odd_idempotent_monotone_and_within_half_a_step(numbers: list[float], name: str) -> None:
    weight = torch.tensor([sorted(numbers)])
    ranges = weight.abs().amax(1)
    stored = quantize_weight(weight, ranges, 0, FORMATS[name])
    w = stored.dequantize()
    assert torch.equal(quantize_weight(-weight, ranges, 0, FORMATS[name]).dequantize(), -w)
    assert torch.equal(quantize_weight(w, ranges, 0, FORMATS[name]).codes, stored.codes)
    assert bool((w.diff() >= 0).all())
    assert bool(((w - weight).abs() <= stored.scales * 0.5 * (1 + 1e-5)).all())


def test_storage_only_rounds_the_dequantized_weight_to_the_activation_format() -> None:
    weight = torch.tensor([[0.7, 0.33]])
    stored = quantize_weight(weight, weight.abs().amax(1), 0, FORMATS["int4"])
    # codes 7 and 3 of scale 0.1; then bf16: 0.7 -> 0.69921875, 0.3 -> 0.30078125
    assert executed_weight(stored, Precision.parse("int4/int8")).tolist()[0] == pytest.approx([0.7, 0.3])
    assert executed_weight(stored, Precision.parse("int4/bf16")).tolist()[0] == [0.69921875, 0.30078125]
    assert executed_weight(weight, Precision.parse("bf16")).tolist()[0] == [0.69921875, 0.330078125]
    assert executed_weight(weight, Precision.parse("fp32")) is weight


def test_numbers_that_are_not_finite_are_named_with_their_place() -> None:
    with pytest.raises(InputError, match=r"conv1\.weight.*nan"):
        check_finite(torch.tensor([1.0, float("nan")]), "conv1.weight")


@pytest.mark.parametrize("shape", [(2**18,), (3, 2**18 + 5), (2, 3, 300, 301)])
def test_rounding_large_tensors_block_by_block_changes_nothing(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    quantizer = activation_quantizer(-2.0, 3.0)
    whole = quantizer(x)
    before = x.clone()
    with torch.inference_mode():
        assert torch.equal(quantizer(x), whole)
        assert torch.equal(quantizer(x.transpose(0, -1)), whole.transpose(0, -1))
    assert torch.equal(x, before)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "every second": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 8, 150, 151)])
def test_rounding_in_place_gives_torchs_fake_quantize_in_every_layout(shape: tuple[int, ...], layout: str) -> None:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(4)) * 2
    x, quantizer = LAYOUTS[layout](made.clone()), activation_quantizer(-2.0, 3.0)
    expected = torch.fake_quantize_per_tensor_affine(
        LAYOUTS[layout](made), quantizer.scale, quantizer.zero_point, 0, 255
    )
    with torch.inference_mode():
        assert torch.equal(quantizer(x), expected)
        before = x.clone()
        rounded = quantizer.in_place(x)
    assert torch.equal(rounded, expected)
    # Memory with gaps, or that serves several places, stays as it was.
    written_over = layout not in ("every second", "expanded")
    assert torch.equal(x, expected if written_over else before)
    assert (rounded is x) == written_over


def test_rounding_in_place_keeps_nan_saturates_infinities_and_spares_what_gradients_need() -> None:
    quantizer = activation_quantizer(-1.0, 1.55)
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.014])
    with torch.no_grad():
        rounded = quantizer.in_place(x.clone())
    assert torch.isnan(rounded[0])
    assert rounded[1:].tolist() == pytest.approx([1.55, -1.0, 0.01])
    assert quantizer.in_place(x) is not x
    assert x[1] == float("inf")


def test_shapes_and_layouts_flow_through_on_the_meta_device() -> None:
    x = torch.empty(3, 8, 150, 151, device="meta").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        rounded = activation_quantizer(-1.0, 1.0)(x)
    assert (rounded.shape, rounded.stride(), rounded.device.type) == (x.shape, x.stride(), "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_rounds_as_the_cpu_does() -> None:
    x = torch.randn(3, 8, 150, 151, generator=torch.Generator().manual_seed(5))
    quantizer = activation_quantizer(-2.0, 3.0)
    with torch.inference_mode():
        assert torch.equal(quantizer(x.cuda()).cpu(), quantizer(x))
        assert torch.equal(quantizer.in_place(x.cuda()).cpu(), quantizer(x))


def test_a_quantizer_first_used_in_inference_mode_takes_part_in_gradients_afterwards() -> None:
    quantizer = activation_quantizer(-1.0, 1.0)
    with torch.inference_mode():
        quantizer(torch.zeros(1))
    x = torch.tensor([0.5], requires_grad=True)
    (quantizer(x) * x).sum().backward()
    # Rounding has no slope: what is left is the rounded value, 64 / 127.5.
    assert x.grad.item() == pytest.approx(64 * 2 / 255)
