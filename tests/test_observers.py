"""Observers: what they choose on distributions whose best range is known or can be found by brute force."""

import numpy as np
import pytest

from haq.nn.observers import (
    BINS,
    DEFAULT_OBSERVER,
    OBSERVERS,
    Histograms,
    minmax,
    mse,
    percentile,
)
from haq.nn.quantizers import affine_parameters


def histograms(*samples: np.ndarray) -> Histograms:
    low, high = np.array([s.min() for s in samples]), np.array([s.max() for s in samples])
    counts = [np.histogram(s[s != 0], BINS, (lo, hi))[0] for s, lo, hi in zip(samples, low, high, strict=True)]
    return Histograms(low, high, np.array(counts, dtype=np.float64), np.array([float((s == 0).sum()) for s in samples]))


def quantization_error(x: np.ndarray, low: float, high: float, levels: int) -> float:
    scale, zero = affine_parameters(np.array([low]), np.array([high]), levels)
    codes = np.clip(np.rint(x / scale[0]) + zero[0], 0, levels)
    return float(np.mean(((codes - zero[0]) * scale[0] - x) ** 2))


def normal(n: int = 200_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_the_defaults_are_registered() -> None:
    assert DEFAULT_OBSERVER in OBSERVERS


def test_minmax_keeps_everything() -> None:
    low, high = minmax(histograms(np.array([-2.0, 0.0, 5.0]), np.array([1.0, 3.0])), 255)
    assert low.tolist() == [-2.0, 1.0]
    assert high.tolist() == [5.0, 3.0]


def test_percentile_drops_a_lone_outlier_and_keeps_the_bulk() -> None:
    x = np.concatenate([np.linspace(0.0, 1.0, 100_001), [1000.0]])
    low, high = percentile(histograms(x), 255)
    assert low[0] == pytest.approx(0.0, abs=1e-9)
    assert high[0] == pytest.approx(1.0, abs=2 * 1000 / BINS)


def test_percentile_counts_zeros_as_seen() -> None:
    # 99.995 % zeros, the rest at 1 and -1: everything but zero lies within the dropped 0.01 %
    x = np.concatenate([np.zeros(199_990), np.ones(5), -np.ones(5)])
    low, high = percentile(histograms(x), 255)
    assert max(abs(low[0]), abs(high[0])) <= 2 * 2 / BINS


@pytest.mark.parametrize("levels", [15, 255])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "skewed"])
def test_mse_is_within_two_percent_of_a_brute_force_search_over_the_samples(kind: str, levels: int) -> None:
    x = normal(20_000)
    if kind == "relu":
        x = np.maximum(x, 0)
    if kind == "outlier":
        x[0] = 30.0
    if kind == "skewed":
        x = np.expm1(x)
    low, high = mse(histograms(x), levels)
    ours = quantization_error(x, low[0], high[0], levels)
    shares = np.linspace(0.02, 1, 50)
    brute = min(quantization_error(x, x.min() * a, x.max() * b, levels) for a in shares for b in shares)
    assert ours <= 1.02 * brute


def test_operands_are_observed_independently_of_each_other() -> None:
    a, b = normal(5000), np.maximum(normal(5000, 1), 0) * 7
    together = mse(histograms(a, b), 255)
    alone = [mse(histograms(s), 255) for s in (a, b)]
    assert together[0].tolist() == [float(r[0][0]) for r in alone]
    assert together[1].tolist() == [float(r[1][0]) for r in alone]


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_constant_and_dead_operands_get_ranges_with_valid_scales(name: str) -> None:
    seen = histograms(np.zeros(10), np.full(10, 3.0), np.full(10, -3.0))
    low, high = OBSERVERS[name](seen, 255)
    scale, _ = affine_parameters(low, high, 255)
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    assert quantization_error(np.full(10, 3.0), low[1], high[1], 255) < 1e-6
