"""Round to nearest: codes stay on the grid, and searched scales are never worse than plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.quantization import rtn
from calibration.scheme import Grid, Keep, RoundToNearest, scheme_of
from exporter.block_codes import Coded
from exporter.errors import OnnxGptError

GRIDS = [Grid(bits, block) for bits in (2, 4, 8) for block in (32, 64)] + [Grid(4, 16), Grid(8, 16)]
grids = st.sampled_from(GRIDS)
WEIGHTS = st.floats(-100, 100, width=32, allow_subnormal=False)


def blocks_of(array: np.ndarray, block: int) -> np.ndarray:
    """float64 ``[R, ⌈K/block⌉, block]``, padded with zeros."""
    R, K = array.shape
    out = np.zeros((R, -(-K // block) * block))
    out[:, :K] = array
    return out.reshape(R, -1, block)


def dequantized(coded: Coded, grid: Grid) -> np.ndarray:
    scale = np.repeat(coded.scale.astype(np.float64), grid.block_size, axis=1)[:, : coded.codes.shape[1]]
    return scale * (coded.codes.astype(np.float64) + grid.low)


def errors(rows: np.ndarray, coded: Coded, grid: Grid) -> np.ndarray:
    """Squared error of each block, a weight's counting in proportion to its size."""
    size = np.abs(blocks_of(rows, grid.block_size)).astype(np.float64)
    largest = size.max(-1, keepdims=True)
    size /= np.where(largest > 0, largest, 1)
    return (size * blocks_of(rows - dequantized(coded, grid), grid.block_size) ** 2).sum(-1)


def from_the_largest_weight(rows: np.ndarray, grid: Grid) -> Coded:
    """What a quantizer without a search does: the largest weight on the lowest code, in float16."""
    blocks = blocks_of(rows, grid.block_size)
    at = np.abs(blocks).argmax(-1)[..., None]
    scale = (np.take_along_axis(blocks, at, -1)[..., 0] / grid.low).astype(np.float16)
    return Coded(rtn.encode(rows, scale, grid), scale, None)


@settings(max_examples=60, deadline=None)
@given(
    rows=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=80), elements=WEIGHTS),
    grid=grids,
)
@example(
    rows=np.full((1, 3), 2.0**-14, np.float32), grid=Grid(4, 32)
)  # exact on the lowest code, and no other
def test_any_weights_come_out_on_the_grid_and_no_worse_than_without_a_search(
    rows: np.ndarray, grid: Grid
) -> None:
    coded = rtn.quantize(rows, grid)
    assert coded.codes.dtype == np.uint8
    assert coded.codes.shape == rows.shape
    assert coded.codes.max() < 1 << grid.bits
    assert coded.scale.dtype == np.float16
    assert coded.scale.shape == (len(rows), -(-rows.shape[1] // grid.block_size))
    assert np.isfinite(coded.scale).all()
    plain = errors(rows, from_the_largest_weight(rows, grid), grid)
    energy = (blocks_of(rows, grid.block_size) ** 2).sum(-1)
    assert (errors(rows, coded, grid) <= plain + energy * 2.0**-20 + grid.block_size * 2.0**-50).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "outlier"])
def test_searched_scales_beat_the_largest_weight_in_every_block(grid: Grid, draw: str) -> None:
    rng = np.random.default_rng(3)
    rows = {
        "normal": rng.standard_normal((64, 256)),
        "laplace": rng.laplace(size=(64, 256)),
        "uniform": rng.uniform(-1, 1, (64, 256)),
        "outlier": rng.standard_normal((64, 256)) * (1 + 30 * (rng.random((64, 256)) < 0.01)),
    }[draw].astype(np.float32)
    searched = errors(rows, rtn.quantize(rows, grid), grid)
    plain = errors(rows, from_the_largest_weight(rows, grid), grid)
    assert searched.sum() < plain.sum()
    energy = (blocks_of(rows, grid.block_size) ** 2).sum(-1)
    assert (searched <= plain + energy * 2.0**-20).all()  # what rounding a scale to float16 can cost


@given(grid=grids, value=st.floats(0.125, 1000, width=32), sign=st.sampled_from([-1, 1]))
def test_a_constant_block_is_kept_to_float16(grid: Grid, value: float, sign: int) -> None:
    rows = np.full((2, 64), sign * value, np.float32)
    assert np.allclose(dequantized(rtn.quantize(rows, grid), grid), rows, rtol=2.0**-10)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_that_lie_on_a_grid_are_found_exactly(grid: Grid) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(grid.low, grid.high + 1, (32, 128))
    codes[:, :: grid.block_size] = grid.low
    scale = np.repeat(rng.choice([-1, 1], (32, 128 // grid.block_size)) * 2.0**-6, grid.block_size, axis=1)
    rows = (codes * scale).astype(np.float32)
    assert np.array_equal(dequantized(rtn.quantize(rows, grid), grid), rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_zero_blocks_stay_zero(grid: Grid) -> None:
    rows = np.zeros((3, 96), np.float32)
    rows[1, 70] = 1
    coded = rtn.quantize(rows, grid)
    assert np.array_equal(dequantized(coded, grid), rows)
    assert (coded.codes[0] == -grid.low).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-45, 1e-38, 2e-38, 1e-37, 1e-30, 1e-12, 3e-8, 1e-7, 1e-6, 1e-5])
def test_weights_below_float16_are_off_by_its_smallest_step_at_most(grid: Grid, size: float) -> None:
    rows = (size * np.random.default_rng(0).uniform(-1, 1, (8, 128))).astype(np.float32)
    coded = rtn.quantize(rows, grid)
    worst = np.abs(rows - dequantized(coded, grid)).max()
    plain = size / -grid.low + 2.0**-24
    assert worst <= plain


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_beyond_float16_are_refused_by_name(grid: Grid) -> None:
    largest = np.float32(65504.0 * -grid.low)
    rows = np.full((2, 64), largest, np.float32)
    assert np.isfinite(rtn.quantize(rows, grid, "a").scale).all()
    rows[1, 40] *= 1.01
    with pytest.raises(OnnxGptError, match=r"layers\.0\.ffn\.down") as caught:
        rtn.quantize(rows, grid, "layers.0.ffn.down")
    assert caught.value.code == "scale-overflow"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    rows = np.ones((3, 40), np.float32)
    rows[2, 37] = bad
    with pytest.raises(OnnxGptError, match=r"layers\.0\.ffn\.down") as caught:
        rtn.quantize(rows, Grid(4, 32), "layers.0.ffn.down")
    assert caught.value.code == "weights-not-finite"


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 32)], ids=str)
def test_a_row_is_quantized_the_same_whatever_rows_lie_beside_it(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(1).standard_normal((40, 200)).astype(np.float32)
    whole = rtn.quantize(rows, grid)
    monkeypatch.setattr(rtn, "CACHED", 600)
    parts = [rtn.quantize(rows[a : a + 7], grid) for a in range(0, 40, 7)]
    assert np.array_equal(np.concatenate([p.codes for p in parts]), whole.codes)
    assert np.array_equal(np.concatenate([p.scale for p in parts]), whole.scale)


def test_the_names_of_the_command_line_are_schemes() -> None:
    assert scheme_of("int4") == RoundToNearest(Grid(4, 32), Grid(4, 32))
    assert scheme_of("int8", block_size=64) == RoundToNearest(Grid(8, 64), Grid(8, 64))
    assert scheme_of("int4", table_bits=8) == RoundToNearest(Grid(4, 32), Grid(8, 32))
    assert scheme_of("keep") == Keep()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("int3", {}),
        ("int4", {"block_size": 48}),
        ("int4", {"block_size": 8}),
        ("int4", {"block_size": 0}),
        ("int4", {"table_bits": 3}),
        ("keep", {"block_size": 32}),
    ],
)
def test_schemes_without_a_fast_kernel_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(OnnxGptError) as caught:
        scheme_of(name, **options)
    assert caught.value.code == "scheme-invalid"


def test_two_bit_blocks_of_16_are_refused() -> None:
    with pytest.raises(OnnxGptError):
        Grid(2, 16)
