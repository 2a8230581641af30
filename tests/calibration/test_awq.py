"""AWQ: scales that are searched lower the error of outputs, are exact before rounding, and reach the whole job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnx_gpt
from calibration.quantization import awq
from calibration.quantization.rtn import nearest
from calibration.quantization.sites import site_of
from calibration.scheme import Awq, Grid
from calibration.statistics.hessian import Hessian
from calibration.transforms.scaling import givers, of_giver, of_readers, scaled
from exporter.errors import Exit, OnnxGptError
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.report import Parity
from tests.calibration.small_graphs import multiply
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

SCHEME = Awq(Grid(4, 32), Grid(8, 32))


def test_a_channel_with_large_inputs_is_rounded_more_finely() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    x = rng.standard_normal((400, 64)).astype(np.float32)
    x[:, ::32] *= 30
    site = site_of(next(iter(multiply(Array(weight)).graph)))
    assert site is not None
    scale = awq.search([site], SCHEME, Hessian.empty(64).add(x).finish(), lambda given: given)
    assert scale is not None and scale[0] > 1.5 * np.median(scale)

    def error(steps: np.ndarray) -> float:
        return float(np.square(x @ (nearest(weight * steps, SCHEME.layers) / steps - weight).T).mean())

    assert error(scale) < 0.7 * error(np.ones(64, np.float32))


def test_equal_channels_are_left_alone_or_nearly() -> None:
    rng = np.random.default_rng(1)
    site = site_of(next(iter(multiply(Array(rng.standard_normal((32, 64)).astype(np.float32))).graph)))
    assert site is not None
    scale = awq.search([site], SCHEME, np.eye(64), lambda given: given)
    assert scale is None or np.allclose(scale, 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3", "neox", "relu"])
def test_scales_of_every_family_are_exact_before_rounding(name: str, tmp_path: Path) -> None:
    described = decoder(**VARIANTS[name])
    weights = random_weights(described)
    model = canonical(described, weights)
    run_pipeline(model, ORT_PIPELINE, verify=False)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (8, 24))
    found = awq.scales(
        model,
        SCHEME,
        tokens,
        givers(described),
        lambda giver, scale: of_readers(described, giver, of_giver(described, giver, scale)),
        tmp_path,
        lambda *told: None,
    )
    assert found and set(found) <= set(givers(described))
    own = {giver: of_giver(described, giver, scale) for giver, scale in found.items()}
    _, changed = scaled(described, weights, own)
    logits = []
    for its in (weights, changed):
        one = canonical(described, its)
        run_pipeline(one, ORT_PIPELINE, verify=False)
        logits.append(run_chunks(session(one), described, whole(tokens[0]))[0][0])
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-3 * np.abs(logits[0]).max())


@pytest.mark.parametrize("method", ["awq", "bias"])
def test_the_whole_job(method: str, tmp_path: Path) -> None:
    report = onnx_gpt.optimize(
        "sample:tiny", tmp_path / "b", quantize="int4", method=method, tokens=256, verify=False
    )
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.recipe["method"] == method and report.calibration["windows"] == 16
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize(
            str(tmp_path / "b" / "model.onnx"), tmp_path / "c", quantize="int8", method=method, parity=False
        )
    assert caught.value.exit in (Exit.UNSUPPORTED, Exit.REJECTED) and not (tmp_path / "c").exists()
