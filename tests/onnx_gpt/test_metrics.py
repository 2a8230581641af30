"""The gate's arithmetic, against definitions and corner cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_gpt.parity.metrics import Agreement, log_softmax

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
