"""Single weights: how many become zero, in which pattern, and that the others make up for them as the algebra says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.pruning.allocation import allocate
from calibration.pruning.second_order import damped_inverse, inverse_factor
from calibration.pruning.sparsity import Sparsity, least, sparsity_of
from calibration.pruning.weights import methods, sparsegpt, wanda
from exporter.errors import OnnxGptError

HALF, TWO_OF_FOUR, FOUR_OF_EIGHT = Sparsity(0.5), Sparsity(0.5, 4, 2), Sparsity(0.5, 8, 4)
SCALES = np.random.default_rng(5).permutation(np.geomspace(0.1, 10, 256))
"""Sizes of inputs, very different ones."""


def layer(R: int, K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix, and the second moment of correlated inputs."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((4 * K, K)) @ random.standard_normal((K, K)) / np.sqrt(K)
    return random.standard_normal((R, K)).astype(np.float32), inputs.T @ inputs / len(inputs)


def damage(before: np.ndarray, after: np.ndarray, hessian: np.ndarray) -> float:
    return float(np.einsum("rk,kl,rl->", before - after, hessian, before - after))


@pytest.mark.parametrize("name", sorted(methods()))
@pytest.mark.parametrize("wanted", [Sparsity(0.3), HALF, Sparsity(0.75), TWO_OF_FOUR, FOUR_OF_EIGHT])
def test_as_many_weights_are_zero_as_were_asked_for(name: str, wanted: Sparsity) -> None:
    rows, hessian = layer(24, 160)
    kept = rows.copy()
    pruned = methods()[name].prune(rows, hessian, wanted, "a map")
    assert np.array_equal(rows, kept), "the input was changed"
    assert pruned.dtype == np.float32
    assert (pruned == 0).mean() == pytest.approx(wanted.share, abs=0.01)
    if wanted.group:
        assert ((pruned.reshape(-1, wanted.group) != 0).sum(1) == wanted.kept).all()


def test_a_row_of_wanda_loses_its_own_weakest_weights_and_keeps_the_others() -> None:
    rows, hessian = layer(8, 64)
    pruned = wanda.prune(rows, hessian, HALF, "a map")
    assert ((pruned == 0).sum(1) == 32).all()
    assert np.array_equal(pruned[pruned != 0], rows[pruned != 0])
    scores = np.abs(rows) * np.sqrt(np.diag(hessian))
    for row, score in zip(pruned, scores, strict=True):
        assert score[row == 0].max() <= score[row != 0].min()


@pytest.mark.parametrize("wanted", [HALF, TWO_OF_FOUR])
def test_second_order_does_less_damage_than_first_and_first_than_size(wanted: Sparsity) -> None:
    rows, hessian = layer(48, 256)
    hessian = hessian * np.outer(scale := SCALES, scale)
    found = {name: damage(rows, m.prune(rows, hessian, wanted, ""), hessian) for name, m in methods().items()}
    assert found["sparsegpt"] < found["wanda"] < found["magnitude"]


@pytest.mark.parametrize("wanted", [HALF, TWO_OF_FOUR, FOUR_OF_EIGHT])
def test_blocks_of_sparsegpt_give_what_one_column_after_the_other_gives(wanted: Sparsity) -> None:
    rows, hessian = layer(16, 200)
    U = inverse_factor(hessian, "a map").astype(np.float64)
    w = rows.astype(np.float64)
    together = wanted.group or sparsegpt.BLOCK
    gone = np.zeros(w.shape, bool)
    for j in range(w.shape[1]):
        if j % together == 0:
            some = slice(j, j + together)
            gone[:, some] = least(w[:, some] ** 2 / np.diag(U)[some] ** 2, wanted, by_row=False)
        w[:, j:] -= np.outer(np.where(gone[:, j], w[:, j] / U[j, j], 0), U[j, j:])
        w[gone[:, j], j] = 0
    np.testing.assert_allclose(sparsegpt.prune(rows, hessian, wanted, "a map"), w, atol=2e-4)


def test_inputs_that_never_come_cost_nothing() -> None:
    rows, hessian = layer(16, 64)
    dead = np.arange(0, 64, 4)
    hessian[dead], hessian[:, dead] = 0, 0
    for name in ("wanda", "sparsegpt"):
        pruned = methods()[name].prune(rows, hessian, Sparsity(0.25), "a map")
        assert (pruned[:, dead] == 0).all(), name
    assert (methods()["sparsegpt"].prune(rows, np.zeros((64, 64)), HALF, "a map") == 0).mean() == 0.5


@pytest.mark.parametrize("name", ["sparsegpt"])
def test_activations_that_are_no_numbers_are_refused(name: str) -> None:
    rows, hessian = layer(4, 16)
    hessian[3, 3] = np.nan
    with pytest.raises(OnnxGptError, match="a map") as caught:
        methods()[name].prune(rows, hessian, HALF, "a map")
    assert caught.value.code == "activations-not-finite"


def test_damping_is_raised_until_the_inverse_exists() -> None:
    hessian = np.ones((8, 8)) - 0.2 * np.eye(8)  # not positive definite with little damping
    damped, inverse = damped_inverse(hessian, "a map")
    np.testing.assert_allclose(damped @ inverse, np.eye(8), atol=1e-9)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:2", "1:4"])
def test_a_pattern_says_its_share(pattern: str) -> None:
    kept, group = map(int, pattern.split(":"))
    assert sparsity_of(None, pattern) == Sparsity(1 - kept / group, group, kept)
    assert sparsity_of(1 - kept / group, pattern).share == 1 - kept / group


@pytest.mark.parametrize(
    ("share", "pattern"),
    [
        *((share, None) for share in (None, 0.0, 1.0, -1.0, float("nan"))),
        *((None, pattern) for pattern in ("4:2", "2-4", "0:4", "3:6", "2:64", "")),
        (0.6, "2:4"),
    ],
)
def test_what_is_no_sparsity_is_refused(share: float | None, pattern: str | None) -> None:
    with pytest.raises(OnnxGptError) as caught:
        sparsity_of(share, pattern)
    assert (caught.value.code, caught.value.exit) == ("prune-invalid", 2)


def test_columns_that_do_not_split_into_groups_are_refused() -> None:
    rows, hessian = layer(4, 18)
    for method in methods().values():
        with pytest.raises(OnnxGptError) as caught:
            method.prune(rows, hessian, TWO_OF_FOUR, "a map")
        assert caught.value.code == "prune-pattern"


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_an_allocation_spends_the_budget_at_the_least_cost(
    costs: list[list[float]], data: st.DataObject
) -> None:
    curves = [np.array(curve) for curve in costs]
    budget = data.draw(st.integers(0, sum(len(curve) - 1 for curve in curves)))
    levels = allocate(curves, budget)
    assert sum(levels) == budget
    best = min(
        sum(curve[level] for curve, level in zip(curves, split, strict=True))
        for split in np.ndindex(*(len(curve) for curve in curves))
        if sum(split) == budget
    )
    assert sum(curve[level] for curve, level in zip(curves, levels, strict=True)) == pytest.approx(best)


def test_a_budget_that_no_levels_reach_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="add up to 3"):
        allocate([np.zeros(2), np.zeros(2)], 3)
