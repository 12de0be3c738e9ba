"""Formats, precisions and assignments against IEEE figures and their own JSON."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import InputError
from haq.precision import BIT_WIDTHS, FORMATS, GROUPS, Assignment, Precision

precisions = st.builds(
    Precision,
    st.sampled_from([fmt for fmt in FORMATS.values() if not fmt.per_token]),
    st.sampled_from([fmt for fmt in FORMATS.values() if fmt.group is None]),
)
assignments = st.dictionaries(
    st.text("abc.01", min_size=1), st.one_of(st.sampled_from(BIT_WIDTHS), precisions), min_size=1
).map(Assignment.of)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_largest_values_of_ieee_formats_are_those_of_numpy(name, dtype):
    assert FORMATS[name].largest == float(np.finfo(dtype).max)


def test_the_largest_bf16_is_fp32_with_sixteen_low_bits_cut():
    bits = np.array([0x7F7F0000], dtype=np.uint32)
    assert FORMATS["bf16"].largest == float(bits.view(np.float32)[0])


@given(precisions)
def test_a_precision_survives_its_written_form(precision):
    assert Precision.parse(str(precision)) == precision


def test_one_format_means_both():
    assert Precision.parse("fp16") == Precision(FORMATS["fp16"], FORMATS["fp16"])


def test_integer_weights_with_float_activations_are_storage_only():
    assert Precision.parse("int4/bf16").is_storage_only
    assert not Precision.parse("int4/int8").is_storage_only
    assert Precision.parse("int4/bf16").compute is FORMATS["bf16"]


@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_weight_in_groups_has_the_codes_of_int4(group):
    fmt = FORMATS[f"int4g{group}"]
    assert (fmt.bits, fmt.largest, fmt.is_integer, fmt.group, fmt.per_token) == (4, 7, True, group, False)
    assert fmt.plain is FORMATS["int4"]


def test_an_activation_per_token_has_the_codes_of_int8():
    fmt = FORMATS["int8t"]
    assert (fmt.bits, fmt.largest, fmt.is_integer, fmt.group, fmt.per_token) == (8, 127, True, None, True)
    assert fmt.plain is FORMATS["int8"]


@pytest.mark.parametrize("text", ["int4g64/fp16", "int4g128/int8t", "int8/int8t", "int4g32/int4"])
def test_scales_change_no_arithmetic(text):
    precision = Precision.parse(text)
    assert precision.compute is precision.activation.plain
    assert precision.is_storage_only == precision.plain.is_storage_only
    assert str(precision.plain) == text.replace("int8t", "int8").replace("g128", "").replace("g64", "").replace(
        "g32", ""
    )


def test_finer_scales_are_taken_where_the_format_has_them():
    scaled = {
        "int4/fp16": "int4g64/fp16",
        "int4/int8": "int4g64/int8t",
        "int8/int8": "int8/int8t",
        "int4g32/int8t": "int4g64/int8t",
        "int4/int4": "int4g64/int4",
        "fp16/fp16": "fp16/fp16",
    }
    for text, expected in scaled.items():
        assert str(Precision.parse(text).scaled(64, per_token=True)) == expected
        assert Precision.parse(text).scaled(None, per_token=False) == Precision.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8t/int8", r"a weight has no tokens; got 'int8t/int8'"),
        ("int8t", r"a weight has no tokens; got 'int8t'"),
        ("int4/int4g64", r"an activation has no groups; got 'int4/int4g64'"),
        ("int4g64", r"an activation has no groups; got 'int4g64'; expected for example int4g64/int8"),
        ("int4g48/int8", r"unknown format; got 'int4g48'"),
    ],
)
def test_scales_on_the_wrong_side_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        Precision.parse(text)


def test_every_scaling_has_a_signature_of_its_own():
    weights = ["int4", *(f"int4g{group}" for group in GROUPS)]
    texts = [f"{weight}/{activation}" for weight in weights for activation in ("int8", "int8t")]
    assert len({Assignment.uniform(["a"], Precision.parse(text)).signature for text in texts}) == 8


def test_the_signature_of_old_runs_is_the_hash_of_layers_and_formats():
    expected = hashlib.sha256(b"a=int4/int8\nb=fp16/fp16").hexdigest()[:16]
    assert Assignment.from_json({"b": "fp16/fp16", "a": "int4/int8"}).signature == expected


def test_an_unknown_format_names_the_known_ones_and_the_nearest():
    with pytest.raises(InputError, match=r"got 'int9'; expected one of .*int8.*did you mean 'int"):
        Precision.parse("int9")


def test_three_formats_are_refused():
    with pytest.raises(InputError, match="expected weight/activation"):
        Precision.parse("int4/int8/fp16")


@given(assignments)
def test_an_assignment_survives_json(assignment):
    assert Assignment.from_json(assignment.to_json()) == assignment


@given(assignments)
def test_a_signature_does_not_depend_on_the_order(assignment):
    turned = Assignment(tuple(reversed(assignment.entries)))
    assert turned.signature == assignment.signature


def test_signatures_differ_where_one_layer_differs():
    base = Assignment.uniform(["a", "b"], 8)
    assert base.signature != Assignment.of({**base, "b": 4}).signature
    assert len({base.signature, Assignment.uniform(["a", "b"], 8).signature}) == 1


def test_equal_assignments_are_one_dictionary_key():
    assert {Assignment.uniform(["a"], 8): 1}[Assignment.of({"a": 8})] == 1
