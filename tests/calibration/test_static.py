"""Static 8-bit: integer products in onnxruntime, near the float graph for every kind of decoder."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.static.codes import ChannelCodes
from calibration.static.qdq import quantize_products, static_sites
from calibration.transforms.rotation import rotated
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.lint import lint
from tests.graph_passes.decoders import (
    VARIANTS,
    VOCAB,
    canonical,
    decoder,
    empty_cache,
    random_weights,
    session,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_codes_are_within_half_a_step_and_the_extreme_is_exact(seed: int, channels: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((channels, width)) * rng.lognormal(size=(channels, 1))).astype(np.float32)
    rows[rng.random(channels) < 0.1] = 0
    stored = ChannelCodes("w", Array(rows))
    codes, scale = stored.codes.numpy(), stored.scale.numpy()
    assert codes.dtype == np.int8 and codes.shape == (width, channels) and scale.shape == (channels,)
    assert codes.min(initial=0) >= -127
    error = np.abs(codes.T * scale[:, None] - rows)
    assert (error <= 0.5001 * scale[:, None]).all()
    np.testing.assert_allclose(np.abs(codes.T * scale[:, None]).max(1), np.abs(rows).max(1), rtol=1e-5)


def quantized(name: str) -> tuple[ir.Model, ir.Model, int]:
    """The float graph of a rotated decoder, the static one, and how many products became static."""
    described, expressions = rotated(decoder(**VARIANTS[name]), random_weights(decoder(**VARIANTS[name])))
    models = [canonical(described, expressions) for _ in range(2)]
    for model in models:
        run_pipeline(model, ORT_PIPELINE)
    sites = static_sites(models[1])
    inputs = list(dict.fromkeys(site.input for site in sites))
    outputs = len(models[1].graph.outputs)
    models[1].graph.outputs.extend(inputs)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (8, 24))
    found = run(models[1], described, tokens)
    del models[1].graph.outputs[outputs:]
    ranges = {v: (float(found[str(v.name)].min()), float(found[str(v.name)].max())) for v in inputs}
    quantize_products(models[1], sites, ranges)
    return models[0], models[1], len(sites)


def run(model: ir.Model, described: object, tokens: np.ndarray) -> dict[str, np.ndarray]:
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    one = session(model)
    out = one.run(None, {**feeds, **empty_cache(described, len(tokens))})  # type: ignore[arg-type]
    return dict(zip([value.name for value in one.get_outputs()], out, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_static_graph_is_near_the_float_one(name: str) -> None:
    float_model, static_model, count = quantized(name)
    layers = 2
    assert count >= 3 * layers, "qkv, o and what leads into the feed-forward, of each layer"
    assert not [finding for finding in lint(static_model) if finding.severity == "error"]
    tokens = np.random.default_rng(2).integers(0, VOCAB, (2, 20))
    exact, rounded = (
        run(m, decoder(**VARIANTS[name]), tokens)["logits"] for m in (float_model, static_model)
    )
    error = float(np.square(rounded - exact).mean() / np.square(exact - exact.mean(-1, keepdims=True)).mean())
    assert 0 < error < 0.02


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_onnxruntime_runs_it_in_integers(name: str, tmp_path: Path) -> None:
    _, model, count = quantized(name)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    ops = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert ops["MatMulIntegerToFloat"] == count
    assert ops["DequantizeLinear"] == 0


def test_one_input_is_rounded_once_and_zero_stays_zero() -> None:
    described = decoder(qk_norm=True)  # a norm between keeps q, k and v apart in the canonical graph
    model = canonical(described)
    sites = static_sites(model)
    inputs = {site.input for site in sites}
    quantize_products(model, sites, dict.fromkeys(inputs, (0.5, 3.0)))
    made = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert len(made) == len(inputs) < len(sites)
    for node in made:
        _, scale, zero = node.inputs
        assert scale is not None and zero is not None
        assert scale.const_value is not None and zero.const_value is not None
        assert zero.const_value.numpy() == 0, "a range that leaves zero out is widened to it"
        np.testing.assert_allclose(scale.const_value.numpy(), 3.0 / 255, rtol=1e-6)


def test_the_down_projection_and_the_table_are_left_to_others() -> None:
    model = canonical(decoder(tied=True))
    roles = {site.role.rpartition(".")[2] for site in static_sites(model)}
    assert roles == {"q", "k", "v", "o", "gate", "up"}
