"""Profiles are refused, with file, key, got and expected, for every fault a hand can make."""

import re
import tomllib

import pytest

from haq.errors import InputError
from haq.hardware.profile import list_profiles, load_profile
from haq.problems import content_hash
from haq.resources import shipped

A100 = shipped("hardware_profiles") / "a100.toml"


@pytest.fixture
def edited(tmp_path):
    def edit(old, new, count=1):
        text = A100.read_text()
        assert old in text
        path = tmp_path / "a100.toml"
        path.write_text(text.replace(old, new, count))
        return str(path)

    return edit


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            'value = 1555, unit = "GB/s"',
            'value = 1555000, unit = "GB/s"',
            "a bandwidth from 1 to 20000 GB/s, not 1.555e+06 GB/s",
        ),
        ('value = 1555, unit = "GB/s"', 'value = 1555, unit = "MB/s"', "is a unit wrong?"),
        (
            'value = 1555, unit = "GB/s"',
            'value = 1555, unit = "TFLOP/s"',
            "a bandwidth in TB/s, GB/s, MB/s, not in 'TFLOP/s'",
        ),
        ('status = "measured" }\ncapacity', 'status = "guessed" }\ncapacity', "memory.efficiency.status"),
        ('"int8/int8"', '"int9/int8"', "int9"),
        ('"int4g64/fp16"', '"int4g48/fp16"', "int4g48"),
        ('"int4g64/fp16"', '"int8t/fp16"', "a weight has no tokens"),
        ("outputs_multiple_of = 64", "outputs_multiple_of = 0", "executes.2.outputs_multiple_of"),
        ("[fusion]", "[fusoin]", "did you mean 'fusion'?"),
        ('layer = ["activation"', 'layer = ["activatoin"', "fusion.layer.0"),
        ('source = "SC25 Antepara (escholarship 6189368s): HBM", ', "", "energy.dram.source' is missing"),
        ("[fusion]", '[accumulators]\nint8 = "int99"\n[fusion]', "int32, intN with 2 to 63 bits, or int16-pairs"),
        (
            "[fusion]",
            '[accumulators]\nint5 = "int32"\n[fusion]',
            "a row of [arithmetic] before the accumulator of 'int5'",
        ),
        ('title = "NVIDIA A100 SXM 40 GB"', "title = 3", "key 'title' is wrong; got 3"),
    ],
)
def test_a_fault_is_one_line_that_names_file_key_got_and_expected(edited, old, new, text):
    path = edited(old, new)
    with pytest.raises(InputError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "a100.toml" in message
    assert text in message
    assert "\n" not in message


def test_an_unknown_target_comes_with_the_nearest_name():
    with pytest.raises(InputError, match=r"unknown target; got 'tpu-v5'; expected one of .*did you mean 'tpu-v[34]'"):
        load_profile("tpu-v5")


def test_an_unknown_option_comes_with_the_known_ones():
    with pytest.raises(
        InputError, match=r"unknown option; got 'tf23'; expected one of 80gb, fastertransformer, int4_conv, tf32"
    ):
        load_profile("a100:tf23")


def test_options_are_part_of_the_name_in_one_order():
    assert load_profile("a100:tf32,80gb").name == load_profile("a100:80gb,tf32").name == "a100:80gb,tf32"
    assert load_profile("a100:80gb").memory.bandwidth.value == 2039
    assert load_profile("a100").memory.bandwidth.value == 1555


def test_a_users_own_file_is_a_target(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(A100.read_text().replace('name = "a100"', 'name = "board"'))
    assert load_profile(str(path)).name == "board"


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda p: p.name)
def test_every_number_of_a_shipped_profile_has_unit_source_and_status(profile):
    numbers = list(profile.figures())
    assert len(numbers) > 20
    for where, figure in numbers:
        assert figure.source, where
        assert figure.unit, where
        if figure.status == "assumed":
            assert figure.uncertainty, f"{where} is assumed without saying how little is known"


def test_no_bare_number_hides_in_a_shipped_profile():
    def bare(table, where=""):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from bare(value, f"{where}.{key}") if "unit" not in value else ()
            elif isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
                yield f"{where}.{key}"

    for path in shipped("hardware_profiles").glob("*.toml"):
        assert list(bare(tomllib.loads(path.read_text()))) == [], path.name


def test_the_published_figures_are_as_published():
    v3, v4, a100 = (load_profile(name) for name in ("tpu-v3", "tpu-v4", "a100"))
    # Google: 123 TFLOP/s and 900 GB/s a chip of two cores; v4 275 and 1200. NVIDIA: 19.5, 312, 624 and 1555.
    assert (2 * v3.arithmetic["bf16"].peak.value, 2 * v3.memory.bandwidth.value) == (123, 900)
    assert (v4.arithmetic["bf16"].peak.value, v4.memory.bandwidth.value) == (275, 1200)
    assert [a100.arithmetic[f].peak.value for f in ("fp32", "fp16", "int8")] == [19.5, 312, 624]
    assert re.search("half a chip", v3.device_unit)
    assert re.search("megacore", v4.device_unit)


def test_accumulators_that_nobody_names_are_wide_and_change_no_runs_identity(edited):
    plain = load_profile(edited('name = "a100"', 'name = "a100"'))
    assert dict(plain.accumulators) == {}
    assert "accumulators" not in plain.model_dump_json(exclude_defaults=True)
    narrow = load_profile(edited("[fusion]", '[accumulators]\nint8 = "int16-pairs"\n[fusion]'))
    assert dict(narrow.accumulators) == {"int8": "int16-pairs"}
    assert content_hash(narrow) != content_hash(plain)
