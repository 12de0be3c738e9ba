"""A search space file is read, checked, and adapted to another input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import InputError
from haq.references import resolve
from haq.spacefile import list_spaces, load_space, parse_shape, with_input, with_seq_len

MINIMAL = """
title = "Mine"
source = "me"
[model]
factory = "./net.py:build"
[[model.inputs]]
shape = [3, 8, 8]
"""
TOKENS = """
title = "Texts"
source = "me"
[model]
factory = "torch.nn:Identity"
[[model.inputs]]
name = "input_ids"
shape = [128]
dtype = "int64"
high = 1000
longest = 512
[[model.inputs]]
name = "attention_mask"
shape = [128]
dtype = "int64"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_shipped_space_loads_and_its_file_says_where_it_comes_from() -> None:
    spaces = {space.name: space for space in list_spaces()}
    assert {"resnet18", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large"} <= spaces.keys()
    assert {"mnist_resnet18", "mnist_mobilenet_v3_small"} <= spaces.keys()
    assert {"densenet121", "googlenet", "mobilenet_v2", "squeezenet1_1", "resnext50", "mobilebert"} <= spaces.keys()
    assert all(space.title and space.source for space in spaces.values())


def test_references_of_shipped_vision_spaces_point_at_functions() -> None:
    for name in ("resnet18", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large", "mnist_resnet18", "googlenet"):
        space = load_space(name)
        data = space.data
        for reference in filter(None, (space.model.factory, data.task, data.weights, data.from_path)):
            assert callable(resolve(reference, space.path.parent, space.extras))


def test_a_users_file_is_a_space_named_after_its_stem(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, MINIMAL))
    assert space.name == "mine"
    assert space.path == (tmp_path / "mine.toml").resolve()
    assert space.model.inputs[0].shape == (3, 8, 8)
    assert (space.rules, space.groups, space.extras) == ((), (), ())


def test_rules_keep_their_order_and_list_bits_upwards(tmp_path: Path) -> None:
    rules = '[[rules]]\nlayers = "*"\nbits = [8, 4]\n[[rules]]\nlayers = "fc"\nbits = [16]\n'
    groups = '[[groups]]\nlayers = ["a.{i}.q", "a.{i}.k"]\n'
    space = load_space(write(tmp_path, MINIMAL + rules + groups))
    assert [(rule.layers, rule.bits) for rule in space.rules] == [("*", (4, 8)), ("fc", (16,))]
    assert space.groups[0].layers == ("a.{i}.q", "a.{i}.k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("factory", "factroy"), "unknown key.*factroy.*did you mean 'factory'"),
        (('"./net.py:build"', '"net.build"'), r"model\.factory.*package\.module:function"),
        (("[3, 8, 8]", "[3, 0, 8]"), "every axis must be at least 1"),
        (("[3, 8, 8]", "[]"), "every axis must be at least 1"),
        (("shape =", 'dtype = "float64"\nshape ='), "dtype.*float32"),
        (('title = "Mine"', ""), "'title' is missing"),
        (("[[model.inputs]]\nshape = [3, 8, 8]", ""), "inputs"),
        (("[3, 8, 8]", '[3, 8, 8]\n[[rules]]\nlayers = "*"\nbits = [5]'), "unknown bit-width 5.*4, 8, 16, 32"),
        (("[3, 8, 8]", '[3, 8, 8]\n[[rules]]\nlayers = "*"\nbits = []'), "bits"),
        (("[3, 8, 8]", '[3, 8, 8]\n[[rules]]\nlayers = "*"\nbits = [8, 8]'), "listed twice"),
        (("[3, 8, 8]", '[3, 8, 8]\nname = "x"\n[[model.inputs]]\nshape = [3]'), "every input has its own name"),
        (("[3, 8, 8]", "[3, 8"), "not TOML"),
    ],
)
def test_a_faulty_file_is_one_line_that_names_it(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(InputError, match=message) as caught:
        load_space(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        load_space("resnet81")


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=5).map(tuple))
def test_a_written_shape_is_read_back(shape: tuple[int, ...]) -> None:
    assert parse_shape("x".join(map(str, shape))) == shape


@pytest.mark.parametrize("text", ["", "3x", "x3", "3x-1", "3*4", "0x4", "3 x 4", "3x224x224\n"])
def test_what_is_no_shape_is_said(text: str) -> None:
    with pytest.raises(InputError, match="not an input shape"):
        parse_shape(text)


def test_another_input_leaves_the_space_alone() -> None:
    space = load_space("resnet18")
    smaller = with_input(space, "3x160x128")
    assert smaller.model.inputs[0].shape == (3, 160, 128)
    assert (smaller.name, smaller.path) == (space.name, space.path)
    assert space.model.inputs[0].shape == (3, 224, 224)


@pytest.mark.parametrize("shape", ["224x224", "1x224x224", "3x224x224x1"])
def test_an_input_of_another_rank_or_channel_number_is_refused(shape: str) -> None:
    with pytest.raises(InputError, match=r"does not fit the model.*3x224x224"):
        with_input(load_space("resnet18"), shape)


def test_the_sequence_length_changes_every_token_input(tmp_path: Path) -> None:
    space = with_seq_len(load_space(write(tmp_path, TOKENS)), 64)
    assert [spec.shape for spec in space.model.inputs] == [(64,), (64,)]
    assert space.model.inputs[0].high == 1000


@pytest.mark.parametrize("length", [0, -1, 513])
def test_a_sequence_length_outside_the_position_table_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(InputError, match="1 to 512"):
        with_seq_len(load_space(write(tmp_path, TOKENS)), length)


def test_each_override_points_to_the_other_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--input CxHxW"):
        with_seq_len(load_space("resnet18"), 64)
    with pytest.raises(InputError, match="--seq-len N"):
        with_input(load_space(write(tmp_path, TOKENS)), "3x8x8")
