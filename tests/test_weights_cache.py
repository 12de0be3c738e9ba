"""Weights are made once per key, kept whole, and made again when the file is damaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from haq.nn.weights_cache import cache_path, cached_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))


def counting() -> tuple[list[int], Callable[[], dict[str, Tensor]]]:
    calls: list[int] = []

    def make() -> dict[str, Tensor]:
        calls.append(1)
        return {"w": torch.arange(4.0), "steps": torch.tensor(3)}

    return calls, make


def test_the_same_ingredients_are_made_once() -> None:
    calls, make = counting()
    first = cached_weights("net", {"seed": "0"}, make)
    second = cached_weights("net", {"seed": "0"}, make)
    assert len(calls) == 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_of_two_at_once_one_makes_them_and_the_other_waits() -> None:
    calls, make = counting()

    def slow() -> dict[str, Tensor]:
        time.sleep(0.3)
        return make()

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: cached_weights("net", {"seed": "0"}, slow), range(2)))
    assert len(calls) == 1
    assert torch.equal(both[0]["w"], both[1]["w"])


@pytest.mark.parametrize(
    "other", [("net2", {"seed": "0"}), ("net", {"seed": "1"}), ("net", {"seed": "0", "data": "x"})]
)
def test_other_ingredients_have_another_file(other: tuple[str, dict[str, str]]) -> None:
    assert cache_path(*other) != cache_path("net", {"seed": "0"})


def test_a_file_with_other_content_than_its_hash_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    calls, make = counting()
    cached_weights("net", {}, make)
    path = cache_path("net", {})
    raw = torch.load(path, weights_only=True)
    raw["state"]["w"][0] = 7.0
    torch.save(raw, path)
    assert torch.equal(cached_weights("net", {}, make)["w"], torch.arange(4.0))
    assert len(calls) == 2
    assert "damaged" in caplog.text


def test_a_truncated_file_is_made_again() -> None:
    calls, make = counting()
    cached_weights("net", {}, make)
    path = cache_path("net", {})
    path.write_bytes(path.read_bytes()[:100])
    cached_weights("net", {}, make)
    cached_weights("net", {}, make)
    assert len(calls) == 2


def test_no_temporary_file_stays() -> None:
    cached_weights("net", {}, counting()[1])
    assert [path.suffix for path in cache_path("net", {}).parent.iterdir()] == [".pt"]


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "file"))
    assert torch.equal(cached_weights("net", {}, counting()[1])["w"], torch.arange(4.0))
    assert "not kept" in caplog.text
