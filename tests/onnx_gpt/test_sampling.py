"""Sampling against transformers' own processors, and the properties that do not need them."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.generation.sampling import Sampling, choose, distribution, penalised

LOGITS = hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(-30, 30, width=32))
NONE = np.array([], np.int64)


@given(LOGITS, st.floats(0.05, 5), st.integers(0, 2**32 - 1))
@example(np.array([-1e-45, 0], np.float32), 1.0, 0)  # two logits of one probability
def test_top_k_1_and_a_small_top_p_are_greedy_even_among_ties(logits, temperature, seed):
    greedy = choose(logits, NONE, Sampling(), np.random.default_rng(seed))
    assert greedy == int(logits.argmax())
    for sampling in (Sampling(temperature, top_k=1), Sampling(temperature, top_p=1e-9)):
        assert choose(logits, NONE, sampling, np.random.default_rng(seed)) == greedy


@given(LOGITS, st.floats(1e-60, 5), st.integers(0, 70), st.floats(0.01, 1))
def test_a_distribution_sums_to_one_within_its_bounds(logits, temperature, k, p):
    ids, probabilities = distribution(logits, Sampling(temperature, k, p))
    assert math.isclose(probabilities.sum(), 1, abs_tol=1e-9)
    assert (probabilities >= 0).all()
    assert len(set(ids.tolist())) == len(ids) <= (k or len(logits))
    least = logits[ids].min()
    assert (np.delete(logits, ids) <= least).all()  # nothing more likely was left out
    if p == 1:
        assert len(ids) == min(k or len(logits), len(logits))


@given(LOGITS, st.floats(0.1, 3), st.floats(0.05, 0.99))
def test_top_p_is_the_smallest_set_that_holds_p(logits, temperature, p):
    whole = np.zeros(len(logits))
    ids, probabilities = distribution(logits, Sampling(temperature))
    whole[ids] = probabilities
    kept, _ = distribution(logits, Sampling(temperature, top_p=p))
    held = np.sort(whole[kept])
    assert held.sum() >= p - 1e-5
    assert held[1:].sum() < p + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 2),
    k=st.integers(0, 50),
    p=st.floats(0.1, 1),
    penalty=st.floats(0.8, 1.5),
)
def test_equals_transformers(seed, temperature, k, p, penalty):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    random = np.random.default_rng(seed)
    logits = (5 * random.standard_normal(300)).astype(np.float32)
    history = random.integers(0, 300, 20)

    scores = torch.tensor(logits)[None]
    scores = processors.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(history)[None], scores)
    scores = processors.TemperatureLogitsWarper(temperature)(None, scores)
    if k:
        scores = processors.TopKLogitsWarper(k)(None, scores)
    if p < 1:
        scores = processors.TopPLogitsWarper(p)(None, scores)
    theirs = scores.softmax(-1)[0].numpy()

    ours = np.zeros(300)
    ids, probabilities = distribution(penalised(logits, history, penalty), Sampling(temperature, k, p))
    ours[ids] = probabilities
    different = np.flatnonzero((ours > 0) != (theirs > 0))
    if len(different):  # only where p falls on a token's edge, within float32's own error
        assert len(different) == 1
        mass_before = np.sort(_whole(logits, history, temperature, k, penalty))[::-1].cumsum()
        assert np.abs(mass_before - p).min() < 1e-5
    else:
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def _whole(logits, history, temperature, k, penalty):
    return distribution(penalised(logits, history, penalty), Sampling(temperature, k))[1]


def test_a_repetition_counts_once_and_leaves_the_logits_alone():
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    result = penalised(logits, np.array([0, 0, 1, 1]), 2.0)
    assert result.tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.1, 0.2, 0.7], np.float32))
    random = np.random.default_rng(0)
    drawn = np.bincount([choose(logits, NONE, Sampling(1.0), random) for _ in range(5000)], minlength=3)
    np.testing.assert_allclose(drawn / 5000, [0.1, 0.2, 0.7], atol=0.03)


def test_the_same_seed_draws_the_same():
    logits = np.random.default_rng(1).standard_normal((50, 40)).astype(np.float32)
    first, again, other = (
        [choose(row, NONE, Sampling(1.0), random) for row in logits]
        for random in map(np.random.default_rng, (3, 3, 4))
    )
    assert first == again != other


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": 1.0, "top_k": -1},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"top_k": 5},
        {"top_p": 0.5},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(OnnxGptError) as error:
        Sampling(**settings)
    assert error.value.code == "sampling-invalid"
    assert error.value.exit == Exit.USAGE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(OnnxGptError, match="logits-not-finite"):
        choose(np.array([0, bad, 1], np.float32), NONE, Sampling(), np.random.default_rng(0))
