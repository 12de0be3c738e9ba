"""The noun: what is known of a piece, bounds, the table of a space, JSON; and whether effects add up."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nets import attention, residual
from search_fakes import target, workload

from haq.additivity import additivity, sample_pairs
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.precision import Assignment, Precision
from haq.sensitivity import Effect, Pair, Sensitivity, pieces_of, quantized_part, read_sensitivity, write_sensitivity
from haq.space import Rule, build_space


def piece(**texts):
    return Assignment.of({name: Precision.parse(text) for name, text in texts.items()})


def sensitivity(effects, pairs=()):
    return Sensitivity("kl", 64, {p: Effect(d, None, 64) for p, d in effects.items()}, tuple(pairs), 1.0)


KNOWN = sensitivity({
    piece(a="int4/int8"): 0.3, piece(a="int8"): 0.1, piece(a="bf16"): 0.02,
    piece(b="int8", c="int8"): 0.4, piece(b="int4/int8", c="fp32"): math.inf,
})  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "divergence", "is_bound"),
    [
        (piece(a="fp32"), 0.0, False),
        (piece(a="int8"), 0.1, False),
        (piece(a="int8/int8t"), 0.1, True),  # finer scales than int8
        (piece(a="int8/fp16"), 0.1, True),
        (piece(a="int4g32/int8"), 0.3, True),
        (piece(a="fp16"), 0.1, True),  # bf16 is as wide and another format
        (piece(a="int4/bf16"), 0.3, True),  # int8/int8 has the wider weight
        (piece(b="int8", c="int8"), 0.4, False),
        (piece(c="int8", b="int8"), 0.4, False),
        (piece(b="int4/int8"), math.inf, False),  # c is FP32 either way
        (piece(b="int8", c="fp16"), 0.4, True),
        (piece(b="int4/int8", c="int8"), None, False),
        (piece(b="int8"), None, False),
        (piece(d="int8"), None, False),
    ],
)
def test_a_piece_is_known_bounded_by_a_narrower_one_or_unknown(asked, divergence, is_bound):
    assert KNOWN.of(asked) == divergence
    assert KNOWN.is_bound(asked) == is_bound


def test_the_table_of_a_space_has_a_row_per_group_and_nan_where_nothing_is_known():
    net = workload(("a", "b"))
    space = build_space(net, (Rule("b", (8, 32)),))
    plain = target(net, no_int4=("a",))
    found = sensitivity({piece(a="int8"): 0.1, piece(b="int8"): math.inf})
    losses = found.losses(space, lambda bits: plain.legalize(bits)[0])
    # a: 4 falls back to int8, 16 is at most what int8 is, 32 is nothing. b has two levels.
    assert np.array_equal(losses, [[0.1, 0.1, 0.1, 0], [math.inf, 0, np.nan, np.nan]], equal_nan=True)
    assert np.isnan(sensitivity({}).losses(space, lambda bits: plain.legalize(bits)[0])[0, :3]).all()


@pytest.mark.parametrize("net", [residual(), attention()], ids=lambda net: net.name)
def test_pieces_are_all_that_any_target_executes_each_once_in_depth_order(net):
    space = build_space(net)
    profiles = [load_profile(name) for name in ("reference", "a100", "mobile", "tpu-v4")]
    calls = []

    def legalizer(profile):
        def run(assignment):
            calls.append(profile.name)
            return legalize(net, assignment, profile).executed

        return run

    found = pieces_of(space, [legalizer(profile) for profile in profiles])
    assert len(calls) == 4 * 4, "once per width and target"
    brute = {
        quantized_part(Assignment.of({layer: executed[layer] for layer in group.layers}))
        for profile in profiles
        for group in space.groups
        for bits in group.bits
        for executed in [legalize(net, Assignment.uniform(net.layer_names, bits), profile).executed]
    } - {frozenset()}
    assert {quantized_part(p) for p in found} == brute
    assert len(found) == len(brute)
    places = [net.layer_names.index(next(iter(p))) for p in found]
    assert places == sorted(places)


numbers = st.floats(0, allow_nan=False) | st.just(math.inf)
precisions = st.sampled_from(["int8", "int4/int8", "int8/int8t", "int4g64/bf16", "fp16"])
texts = st.dictionaries(st.sampled_from("abc"), precisions, min_size=1)
effects = st.builds(Effect, numbers, st.none() | st.floats(allow_nan=False), st.integers(1, 9))


@given(st.lists(st.tuples(texts, effects)), effects, st.floats(0, 1e9))
def test_json_keeps_every_bit(rows, pair_effect, forwards):
    given_effects = {piece(**text): effect for text, effect in rows}
    pairs = tuple(Pair(p, p, pair_effect) for p in given_effects)
    made = Sensitivity("relative error", 7, given_effects, pairs, forwards)
    back = Sensitivity.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert (back.measure, back.samples, back.effects, back.pairs, back.sample_forwards) == (
        "relative error", 7, given_effects, pairs, forwards,
    )  # fmt: skip


def test_a_file_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "sensitivity.json"
    write_sensitivity(path, KNOWN)
    assert read_sensitivity(path).effects == KNOWN.effects
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivity.json"]


NAMES = [f"l{i}" for i in range(12)]
SINGLES = {piece(**{name: "int8"}): 0.001 * 1.5**i for i, name in enumerate(NAMES)}


def measured(together):
    """The neighbours' pairs, where `together` says what two divergences become."""
    pairs = [
        Pair(a, b, Effect(together(i, SINGLES[a], SINGLES[b]), None, 64)) for i, (a, b) in enumerate(pairwise(SINGLES))
    ]
    return additivity(sensitivity(SINGLES, pairs))


def test_effects_that_add_up_give_no_warning():
    found = measured(lambda i, a, b: 1.1 * (a + b))
    assert found.rank_correlation == pytest.approx(1)
    assert found.ratio == pytest.approx(1.1)
    assert found.pairs == 11
    assert found.warning is None


def test_effects_that_do_not_add_up_are_told_with_their_figures():
    reverse = measured(lambda i, a, b: 1 / (a + b))
    assert reverse.rank_correlation == pytest.approx(-1)
    assert "rank correlation is -1.00" in reverse.warning
    assert "11 pairs" in reverse.warning
    assert "3 times their sum" in measured(lambda i, a, b: 3 * (a + b)).warning
    infinite = measured(lambda i, a, b: math.inf)
    assert infinite.rank_correlation is None
    assert "unknown" in infinite.warning


def test_rank_correlation_is_that_of_the_textbook():
    # Swapping the middle two of eleven ranks: 1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 6 x 2 / (11 x 120).
    sums = [SINGLES[a] + SINGLES[b] for a, b in pairwise(SINGLES)]
    swapped = [*sums[:5], sums[6], sums[5], *sums[7:]]
    assert measured(lambda i, a, b: swapped[i]).rank_correlation == pytest.approx(1 - 12 / 1320)


def test_too_few_pairs_say_nothing():
    few = additivity(sensitivity(SINGLES, ()))
    assert (few.rank_correlation, few.ratio, few.pairs) == (None, None, 0)
    assert "unknown" in few.warning


def test_pairs_are_deterministic_noticeable_spread_and_of_neighbours_and_others():
    known = {p: Effect(d, None, 64) for p, d in SINGLES.items()}
    known |= {piece(x="int8"): Effect(math.inf, None, 64), piece(y="int8"): Effect(1e-9, None, 64)}
    pairs = sample_pairs(known, 8, seed=3)
    assert pairs == sample_pairs(known, 8, seed=3)
    assert len(pairs) == 8
    places = [tuple(NAMES.index(next(iter(p))) for p in pair) for pair in pairs]
    firsts = [first for first, _ in places]
    assert firsts == sorted(firsts)
    assert firsts[0] <= 1
    assert firsts[-1] >= 10
    assert all(abs(a - b) == 1 for a, b in places[::2])


@given(st.lists(st.tuples(texts, effects), max_size=8), st.integers(0, 12), st.integers(0, 5))
@example([({"a": "int8"}, Effect(5e-324, None, 1)), ({"b": "int8"}, Effect(0.0, None, 1))], 1, 0)
def test_pairs_never_share_a_layer_nor_repeat_nor_hold_the_infinite(rows, count, seed):
    known = {piece(**text): effect for text, effect in rows}
    pairs = sample_pairs(known, count, seed)
    assert len(pairs) <= count
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    for first, second in pairs:
        assert not set(first) & set(second)
        assert 0 < known[first].divergence < math.inf
        assert 0 < known[second].divergence < math.inf
