"""Corrected biases: the mean error of a product is gone, and a model with biases comes nearer to its float self."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from calibration.quantization import bias_correction
from calibration.quantization.rtn import nearest
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import BiasCorrected, Grid
from exporter.errors import Exit, OnnxGptError
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, run_pipeline
from tests.calibration.test_rotation import _rows_agree
from tests.graph_passes.decoders import VARIANTS, VOCAB, canonical, decoder, random_weights

SCHEME = BiasCorrected(Grid(4, 32), Grid(8, 32))
quietly = functools.partial(lambda *told: None)


def test_the_mean_of_the_error_is_gone() -> None:
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.standard_normal((24, 64)).astype(np.float32),
        rng.standard_normal(24).astype(np.float32),
    )
    x = (rng.standard_normal((500, 64)) + rng.uniform(-3, 3, 64)).astype(np.float32)
    found = bias_correction.Corrected(Array(bias), Array(weight), Grid(4, 32), x.mean(axis=0))
    _rows_agree("bias", found)
    exact, rounded = x @ weight.T + bias, x @ nearest(weight, Grid(4, 32)).T
    assert np.abs((rounded + bias - exact).mean(axis=0)).max() > 0.05
    np.testing.assert_allclose((rounded + found.read() - exact).mean(axis=0), 0, atol=1e-4)
    assert np.square(rounded + found.read() - exact).mean() < np.square(rounded + bias - exact).mean()


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen2"])
def test_a_decoder_with_biases_comes_nearer(name: str, tmp_path: Path) -> None:
    described = decoder(**VARIANTS[name])
    weights = random_weights(described)
    model = canonical(described, weights)
    run_pipeline(model, ORT_PIPELINE, verify=False)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (16, 24))
    means = bias_correction.means(model, tokens, tmp_path, quietly)
    roles = {role.removesuffix(".weight") for role in weights if ".attention." in role or ".ffn." in role}
    assert set(means) == {role for role in roles if not role.endswith((".bias", "norm"))}
    _, changed = bias_correction.corrected(described, weights, SCHEME, means)
    touched = {role for role in weights if changed[role] is not weights[role]}
    assert touched == {f"{role}.bias" for role in means if f"{role}.bias" in weights}
    for role, mean in means.items():  # the correction is what the codes of that weight miss
        if f"{role}.bias" in touched:
            rows = weights[f"{role}.weight"].read()
            missed = (rows - nearest(rows, SCHEME.grid_of(role) or SCHEME.layers)) @ mean
            shift = changed[f"{role}.bias"].read() - weights[f"{role}.bias"].read()
            np.testing.assert_allclose(shift, missed, atol=1e-4)
    again = canonical(described, changed)
    run_pipeline(again, ORT_PIPELINE, verify=False)
    quantize_weights(again, SCHEME)


def test_a_model_without_biases_is_refused(tmp_path: Path) -> None:
    described = decoder()
    weights = random_weights(described)
    means = {"layers.0.ffn.down": np.ones(96, np.float32)}
    with pytest.raises(OnnxGptError) as caught:
        bias_correction.corrected(described, weights, SCHEME, means)
    assert (caught.value.code, caught.value.exit) == ("nothing-to-correct", Exit.REJECTED)
