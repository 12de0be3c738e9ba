"""A table of measurements is refused with file, line, column, got and expected for every fault a hand can make."""

import pytest

from haq.errors import InputError
from haq.hardware.measurements import read_measurements

HEADER = "id,target,runtime,space,input,batch,precision,latency_ms,source,note\n"
GOOD = "a1,a100,TensorRT,resnet50,3x224x224,8,int8,1.5,somebody's README,\n"


def table(tmp_path, text):
    path = tmp_path / "measured.csv"
    path.write_text(text)
    return path


def test_a_good_row_is_read_as_it_stands(tmp_path) -> None:
    (row,) = read_measurements(table(tmp_path, HEADER + GOOD))
    assert (row.id, row.batch, row.precision, row.latency_ms) == ("a1", 8, "int8/int8", 1.5)


def test_input_and_note_may_be_left_out(tmp_path) -> None:
    text = (
        "id,target,runtime,space,batch,precision,latency_ms,source\nx,a100,TensorRT,resnet50,1,8,2,somebody's README\n"
    )
    assert read_measurements(table(tmp_path, text))[0].input == ""


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (",1.5,", ",-1.5,", r"line 2: key 'latency_ms' is wrong; got '-1.5'; expected greater than 0"),
        (",1.5,", ",0,", r"line 2: key 'latency_ms' is wrong; got '0'"),
        (",1.5,", ",,", r"line 2: key 'latency_ms' is wrong; got ''; expected a valid number"),
        (",1.5,", ",nan,", r"line 2: key 'latency_ms' is wrong; got 'nan'"),
        (",1.5,", ",fast,", r"line 2: key 'latency_ms' is wrong; got 'fast'; expected a valid number"),
        (",8,int8", ",0,int8", r"line 2: key 'batch' is wrong; got '0'; expected greater than or equal to 1"),
        (",int8,", ",int9,", r"line 2: key 'precision' is wrong; got 'int9'; expected bits, weight/activation formats"),
        (",int8,", ",12,", r"line 2: key 'precision' is wrong; got '12'; expected 4, 8, 16 or 32 bits"),
        ("somebody's README", "", r"line 2: key 'source' is wrong; got ''; expected String should have at least 8"),
        (",1.5,", ",", r"line 2: not as many fields as columns; expected 10"),
        (GOOD, "", r"measured.csv: no measurement in the table; expected at least one row"),
        (GOOD, GOOD + GOOD, r"line 3: the id occurs twice; got 'a1'; see line 2"),
        ("latency_ms", "latency", r"measured.csv: column 'latency_ms' is missing; got .*; expected id, target"),
        (",note\n", ",note,remark\n", r"measured.csv: column 'remark' is unknown"),
    ],
)
def test_a_fault_is_one_line_that_names_file_line_got_and_expected(tmp_path, old, new, text) -> None:
    assert old in HEADER + GOOD
    path = table(tmp_path, (HEADER + GOOD).replace(old, new, 1))
    with pytest.raises(InputError, match=text) as caught:
        read_measurements(path)
    assert "measured.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nothing\.csv: cannot read the measurements"):
        read_measurements(tmp_path / "nothing.csv")
