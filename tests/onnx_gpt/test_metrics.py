"""The gate's arithmetic, against definitions and corner cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_gpt.parity.metrics import Agreement, log_softmax
from onnx_gpt.parity.recalled import Recalled
from onnx_gpt.parity.text import even_window

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 70), st.integers(2, 9)), elements=st.floats(-30, 30, width=32)
)


def measured(ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    agreement = Agreement()
    agreement.add(ours, theirs, np.zeros(len(ours), np.int64))
    return agreement


@given(LOGITS)
def test_a_model_agrees_with_itself(logits: np.ndarray) -> None:
    agreement = measured(logits, logits)
    assert agreement.tokens == len(logits)
    assert agreement.kl_statistics() == (0.0, 0.0, 0.0)
    assert agreement.top1(0.0) == (1.0, 0)
    assert agreement.max_abs == 0.0
    ours, theirs = agreement.perplexities()
    assert ours == theirs


@given(LOGITS, st.floats(-5, 5))
def test_a_constant_added_to_all_logits_changes_nothing_but_max_abs(logits: np.ndarray, shift: float) -> None:
    agreement = measured(logits + np.float32(shift), logits)
    assert agreement.kl_statistics()[2] < 1e-9
    assert agreement.top1(1e-4)[0] == 1.0


def test_kl_is_the_definition() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.6, 0.3])
    agreement = measured(np.log(q)[None].astype(np.float32), np.log(p)[None].astype(np.float32))
    assert agreement.kl_statistics()[0] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-6)
    assert agreement.top1(0.0)[0] == 0.0
    assert agreement.perplexities() == (pytest.approx(10.0, rel=1e-6), pytest.approx(1 / 0.7, rel=1e-6))


def test_a_tie_is_told_from_a_difference() -> None:
    theirs = np.array([[1.0, 0.9999, 0.0]], np.float32)
    ours = np.array([[0.9999, 1.0, 0.0]], np.float32)
    assert measured(ours, theirs).top1(1e-3) == (1.0, 1)
    assert measured(ours, theirs).top1(0.0) == (0.0, 1)  # not the same choice, and nearly tied
    apart = np.array([[0.0, 1.0, 0.0]], np.float32)
    assert measured(apart, np.array([[5.0, 0.0, 0.0]], np.float32)).top1(0.0) == (0.0, 0)


def test_errors_are_standard_errors() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((400, 9)).astype(np.float32)
    agreement = measured(theirs + 0.3 * rng.standard_normal((400, 9)).astype(np.float32), theirs)
    kl = np.concatenate(agreement.kl)
    assert agreement.kl_error() == pytest.approx(kl.std(ddof=1) / 20)
    log_ratio, error = agreement.log_ratio()
    ours, reference = agreement.perplexities()
    assert np.exp(log_ratio) == pytest.approx(ours / reference)
    paired = np.concatenate(agreement.nll) - np.concatenate(agreement.reference_nll)
    assert error == pytest.approx(paired.std(ddof=1) / 20)
    assert error < np.concatenate(agreement.nll).std() / 20, "pairing by token leaves out what both find hard"


@given(LOGITS, st.floats(-5, 5))
def test_a_deviation_does_not_count_what_changes_no_probability(logits: np.ndarray, shift: float) -> None:
    found = measured(logits + np.float32(shift), logits).deviation()
    assert found.worst < 1e-5 and found.rms <= found.worst + 1e-12


def test_nothing_compares_well_with_nan() -> None:
    agreement = measured(np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), np.float32))
    assert np.isnan(agreement.kl_statistics()[0])


@given(LOGITS)
def test_log_softmax_sums_to_one(logits: np.ndarray) -> None:
    assert np.allclose(np.exp(log_softmax(logits)).sum(-1), 1.0)


def test_windows_are_even_and_hold_hardly_more_than_is_asked_for() -> None:
    assert even_window(2048, 512) == 411 and even_window(511, 512) == 512 and even_window(100, 64) == 51
    assert even_window(1, 512) == even_window(3, 8) == 8 and even_window(1, 4) == 4
    for tokens, longest in ((2048, 512), (64, 64), (7, 8)):
        window = even_window(tokens, longest)
        count = -(-tokens // (window - 1))
        assert window <= longest and tokens <= count * (window - 1) < tokens + count


def test_a_text_is_run_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    asked = []

    class Model:
        name, cached, remembers, pads, batches, cache_axis = "model", False, False, False, True, 2

        def logits(self, tokens: np.ndarray) -> np.ndarray:
            asked.append(tokens.shape)
            return np.full((*tokens.shape, 3), tokens.sum(), np.float32)

    known = Recalled(Model(), tmp_path, most=1)  # type: ignore[arg-type]
    long, other, short = (np.full((1, size), size) for size in (200, 150, 20))
    for tokens in (long, short, other, long, short, other):
        np.testing.assert_array_equal(known.logits(tokens)[0, 0], np.float32(tokens.sum()))
    assert asked == [(1, 200), (1, 20), (1, 150), (1, 20), (1, 150)]
