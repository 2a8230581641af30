"""GPTQ: codes on the grid of round to nearest, with less error in the outputs, whatever the inputs are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.quantization import gptq, rtn
from calibration.scheme import Grid
from exporter.block_codes import Coded
from exporter.errors import OnnxGptError


def inputs(seed: int, width: int, *, rank: int = 0, count: int = 400) -> np.ndarray:
    """Correlated inputs, some channels much larger than others: float32 ``[count, width]``."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((rank or width, width)) * np.exp(rng.standard_normal(width))
    return (rng.standard_normal((count, rank or width)) @ mix).astype(np.float32)


def second_moment(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide.T @ wide / len(wide)


def weight(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def values(coded: Coded, grid: Grid) -> np.ndarray:
    scale = np.repeat(coded.scale.astype(np.float32), grid.block_size, axis=1)[:, : coded.codes.shape[1]]
    return scale * (coded.codes.astype(np.float32) + grid.low)


def output_error(x: np.ndarray, w: np.ndarray, coded: Coded, grid: Grid) -> float:
    return float((((w - values(coded, grid)) @ x.T.astype(np.float64)) ** 2).mean())


@given(
    seed=st.integers(0, 50),
    columns=st.sampled_from([16, 48, 100, 200]),
    grid=st.sampled_from([Grid(4, 16), Grid(4, 32), Grid(8, 64), Grid(2, 32)]),
)
@settings(max_examples=15, deadline=None)
def test_outputs_are_nearer_than_with_rounding(seed: int, columns: int, grid: Grid) -> None:
    x, w = inputs(seed, columns), weight(seed, 24, columns)
    chosen = gptq.quantize(w, gptq.objective(second_moment(x)), grid)
    assert output_error(x, w, chosen, grid) < 0.8 * output_error(x, w, rtn.quantize(w, grid), grid)


def test_each_step_lowers_the_error() -> None:
    x, w, grid = inputs(1, 192), weight(1, 64, 192), Grid(4, 32)
    H = gptq.objective(second_moment(x))
    steps = [gptq.quantize(w, H, grid, rounds=r, sweeps=s) for r, s in ((0, 0), (0, 2), (1, 2), (3, 2))]
    errors = [output_error(x, w, step, grid) for step in steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.95 * errors[0]


def test_rows_are_independent_and_blocks_of_columns_make_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w, grid = inputs(2, 80), weight(2, 40, 80), Grid(4, 16)
    H = gptq.objective(second_moment(x))
    whole = gptq.quantize(w, H, grid)
    parts = [gptq.quantize(w[a : a + 7], H, grid) for a in range(0, 40, 7)]
    same = (np.concatenate([part.codes for part in parts]) == whole.codes).mean()
    assert same > 0.99  # sums of other lengths round otherwise
    monkeypatch.setattr(gptq, "OUTER", 16)
    monkeypatch.setattr(gptq, "INNER", 4)
    small = gptq.quantize(w, H, grid)
    assert (small.codes == whole.codes).mean() > 0.97
    assert np.isclose(output_error(x, w, small, grid), output_error(x, w, whole, grid), rtol=0.02)


def test_a_weight_on_the_grid_is_left_alone() -> None:
    grid = Grid(4, 32)
    codes = np.random.default_rng(3).integers(-8, 8, (16, 64))
    codes[:, ::32] = -8
    w = codes.astype(np.float32) * np.float32(0.125)
    chosen = gptq.quantize(w, gptq.objective(second_moment(inputs(3, 64))), grid)
    assert np.array_equal(values(chosen, grid), w)


def test_silent_channels_and_few_samples_are_damped() -> None:
    x, w, grid = inputs(4, 64, rank=5, count=20), weight(4, 16, 64), Grid(4, 32)
    x[:, 10:20] = 0
    H = gptq.objective(second_moment(x))
    chosen = gptq.quantize(w, H, grid)
    assert output_error(x, w, chosen, grid) < output_error(x, w, rtn.quantize(w, grid), grid)
    silent = np.abs(values(chosen, grid) - w)[:, 10:20]
    assert silent.max() < 1.0, "a silent channel keeps its own values"


def test_without_any_input_it_is_rounding_for_the_least_square() -> None:
    w, grid = weight(5, 16, 64), Grid(4, 32)
    chosen = gptq.quantize(w, gptq.objective(np.zeros((64, 64))), grid)
    rounded = rtn.quantize(w, grid)
    eye = np.eye(64, dtype=np.float32)
    assert output_error(eye, w, chosen, grid) <= output_error(eye, w, rounded, grid)


def test_a_matrix_that_no_damping_mends_falls_back_to_its_diagonal() -> None:
    bad = -np.ones((32, 32)) + 1.5 * np.eye(32)  # not a second moment: its least eigenvalue is far below zero
    H = gptq.objective(bad)
    assert H.damping > gptq.MOST_DAMPING
    assert np.array_equal(H.factor, np.eye(32, dtype=np.float32))
    assert np.isfinite(gptq.quantize(weight(6, 4, 32), H, Grid(4, 32)).scale).all()


def test_activations_that_are_not_finite_are_refused() -> None:
    with pytest.raises(OnnxGptError) as caught:
        gptq.objective(np.full((4, 4), np.nan))
    assert caught.value.code == "activations-not-finite"
