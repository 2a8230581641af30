"""Statistics are monoids: streaming gives what one batch gives, shards merge in any grouping, memory stays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.statistics.hessian import Hessian
from calibration.statistics.histogram import Histogram

WIDTH = 5
EMPTY: dict[str, Callable[[], Any]] = {
    "hessian": lambda: Hessian.empty(WIDTH),
    "histogram": Histogram.empty,
}
KINDS = pytest.mark.parametrize("kind", EMPTY)


def rows(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, WIDTH)) * 10.0 ** rng.integers(-6, 4, (count, 1))).astype(np.float32)


def state(statistic: Any) -> list[np.ndarray]:
    return [np.asarray(value, np.float64) for value in vars(statistic).values()]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(state(one), state(other), strict=True):
        finite = np.isfinite(a) & np.isfinite(b)
        size = np.abs(a[finite]).max(initial=0)
        assert np.allclose(a[finite], b[finite], rtol=1e-6, atol=1e-6 * size)
        assert np.array_equal(a[~finite], b[~finite])


@KINDS
@given(
    seed=st.integers(0, 99),
    count=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_piece_by_piece_is_all_at_once(kind: str, seed: int, count: int, cuts: list[int]) -> None:
    whole = rows(seed, count)
    streamed = EMPTY[kind]()
    for piece in np.split(whole, sorted(min(cut, count) for cut in cuts)):
        streamed = streamed.add(piece)
    assert_same(streamed, EMPTY[kind]().add(whole))


@KINDS
@given(seed=st.integers(0, 99), sizes=st.tuples(*[st.integers(0, 12)] * 3))
@settings(max_examples=25, deadline=None)
def test_shards_merge_in_any_grouping_and_order(kind: str, seed: int, sizes: tuple[int, int, int]) -> None:
    a, b, c = (EMPTY[kind]().add(rows(seed + i, size)) for i, size in enumerate(sizes))
    everything = EMPTY[kind]().add(np.concatenate([rows(seed + i, size) for i, size in enumerate(sizes)]))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(b.merge(a), a.merge(b))
    assert_same(a.merge(EMPTY[kind]()), a)
    assert_same(a.merge(b).merge(c), everything)


@KINDS
def test_memory_does_not_follow_the_number_of_samples(kind: str) -> None:
    def peak(batches: int) -> int:
        batch = rows(0, 2000)
        tracemalloc.start()
        statistic = EMPTY[kind]()
        for _ in range(batches):
            statistic = statistic.add(batch)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(10) < 1.05 * peak(1) + 1000


def test_the_hessian_is_the_mean_of_outer_products() -> None:
    batch = rows(3, 50).reshape(5, 10, WIDTH)
    wide = batch.reshape(-1, WIDTH).astype(np.float64)
    assert np.allclose(Hessian.empty(WIDTH).add(batch).finish(), wide.T @ wide / 50, rtol=1e-5)


def distribution(values: np.ndarray) -> Any:
    return Histogram.empty().add(values.astype(np.float32)).finish()


def test_a_percentile_is_within_a_bin_of_the_exact_one() -> None:
    values = np.random.default_rng(0).standard_t(3, 200_000)
    low, high = distribution(values).percentile(0.999)
    exact = np.quantile(values, [0.0005, 0.9995])
    assert np.allclose([low, high], exact, rtol=0.05)
    assert distribution(values).percentile(1) == (
        values.astype(np.float32).min(),
        values.astype(np.float32).max(),
    )


def test_the_range_of_least_error_beats_the_whole_one_where_there_are_outliers() -> None:
    values = np.concatenate([np.random.default_rng(1).standard_normal(100_000), [60.0, -55.0]])
    found = distribution(values)

    def error(ends: tuple[float, float]) -> float:
        low, high = ends
        step = (high - low) / 15
        zero = np.rint(low / step)
        q = np.clip(np.rint(values / step), zero, zero + 15)
        return float((np.abs(values - q * step) ** 2.4).mean())

    least = found.least_error(bits=4)
    assert least[1] < 20
    assert error(least) < 0.5 * error(found.everything())


def test_entropy_clips_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    normal = np.random.default_rng(2).standard_normal(100_000)
    _, high = distribution(np.append(normal, 100.0)).entropy()
    assert 3 < high < 20
    uniform = np.random.default_rng(3).uniform(-1, 1, 100_000)
    low, high = distribution(uniform).entropy()
    assert high > 0.9 and low < -0.9


def test_nothing_seen_is_a_range_of_nothing() -> None:
    empty = Histogram.empty().finish()
    assert empty.everything() == empty.percentile(0.5) == empty.entropy() == (0.0, 0.0)
