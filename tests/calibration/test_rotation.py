"""Rotations change no function: every kind of decoder gives the same logits before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny import tiny

from calibration.distillation import running
from calibration.transforms.orthogonal import keeping_ones, spreading
from calibration.transforms.rotation import rotated
from calibration.transforms.scaling import givers, roles_of, scaled
from exporter.decoder import Decoder
from exporter.families import families
from exporter.match import matched
from exporter.weights import Array, Weight
from graph_passes import ORT_PIPELINE, run_pipeline
from tests.graph_passes.decoders import (
    VARIANTS,
    VOCAB,
    canonical,
    decoder,
    random_weights,
    run_chunks,
    session,
    whole,
)

SHAPES = {
    **VARIANTS,
    "gpt2_tied": {**VARIANTS["gpt2"], "tied": True},
    "gpt2_no_bias": {**VARIANTS["gpt2"], "bias": False},
    "neox_tied": {**VARIANTS["neox"], "tied": True},
    "relu2_tied": {**VARIANTS["relu2"], "tied": True},
}


@pytest.mark.parametrize("size", [2, 3, 16, 24, 36, 64, 96, 144])
def test_the_matrices_are_orthogonal_and_spread(size: int) -> None:
    for matrix in (spreading(size), spreading(size, seed=1), keeping_ones(size)):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-5)
    np.testing.assert_allclose(keeping_ones(size) @ np.ones(size), np.ones(size), atol=1e-5)
    if size >= 16:
        assert np.abs(spreading(size)).max() < 0.9
        np.testing.assert_array_equal(spreading(size), spreading(size))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_rotated_decoder_is_the_same_function(name: str, lower: bool) -> None:
    described = decoder(**SHAPES[name])
    weights = random_weights(described)
    turned, expressions = rotated(described, weights)
    tokens = np.random.default_rng(0).integers(0, VOCAB, 20)
    logits = []
    for one, its in ((described, weights), (turned, expressions)):
        model = canonical(one, its)
        if lower:
            run_pipeline(model, ORT_PIPELINE)
        logits.append(run_chunks(session(model), one, whole(tokens))[0][0])
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-3 * np.abs(logits[0]).max())
    assert {role for role, _ in turned.parts()} == set(expressions)


@pytest.mark.parametrize("family", sorted(families()))
def test_a_rotated_and_scaled_family_is_the_same_function(family: str) -> None:
    """Whatever a family's norms read or leave out."""
    described, weights = matched(tiny(family))
    rng = np.random.default_rng(0)
    turned, its = rotated(described, weights)
    scales = {
        giver: rng.uniform(0.5, 2.0, its[roles_of(turned, giver)[0][0]].shape[0]).astype(np.float32)
        for giver in givers(turned)
    }
    assert {giver.split(".", 2)[2] for giver in scales} >= {"attention.v"}
    expected = in_torch(described, weights)
    for found in (in_torch(turned, its), in_torch(*scaled(turned, its, scales))):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def in_torch(described: Decoder, weights: Mapping[str, Weight]) -> np.ndarray:
    """Logits of twenty tokens."""
    own = running.tensors({role: weight.read() for role, weight in weights.items()})
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, described.vocab_size, (1, 20)))
    with torch.no_grad():
        x = running.residual(described, own, tokens)
        return running.logits(described, own, x).cpu().numpy()


@pytest.mark.parametrize("name", SHAPES)
def test_any_rows_are_those_of_the_whole(name: str) -> None:
    described = decoder(layers=1, **SHAPES[name])
    _, expressions = rotated(described, random_weights(described))
    for role, weight in expressions.items():
        _rows_agree(role, weight)


def _rows_agree(role: str, weight: Weight) -> None:
    read = weight.read()
    assert read.shape == weight.shape and read.dtype == np.float32
    third = len(read) // 3
    for start, stop in ((0, third), (third, third + 1), (third, len(read))):
        np.testing.assert_allclose(weight.rows(start, stop), read[start:stop], atol=1e-5, err_msg=role)


def test_what_stood_out_in_one_channel_is_spread() -> None:
    described = decoder(tied=True)
    weights = random_weights(described)
    table = weights["embedding.weight"].read().copy()
    table[:, 5] *= 100
    turned, expressions = rotated(described, {**weights, "embedding.weight": Array(table)})
    rows = expressions["embedding.weight"].read()
    assert np.abs(rows).max() < 0.5 * np.abs(table).max()
    np.testing.assert_allclose(np.square(rows).sum(-1), np.square(table).sum(-1), rtol=1e-4)
    assert turned.head_input is not None
