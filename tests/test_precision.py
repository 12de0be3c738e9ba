"""Formats, precisions and assignments against IEEE figures and their own JSON."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import InputError
from haq.precision import BIT_WIDTHS, FORMATS, Assignment, Precision

precisions = st.builds(Precision, *[st.sampled_from(list(FORMATS.values()))] * 2)
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
