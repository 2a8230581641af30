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

from calibration.dynamic.blocks import BlockCodes
from calibration.quantization import gptq
from calibration.scheme import Grid, Static
from calibration.static.calibrated import Channels, calibrate
from calibration.static.codes import RoundedCodes, nearest
from calibration.static.qdq import grid_of, quantize_products, rounded_to, rows_rounded, static_sites
from calibration.transforms.rotation import rotated
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.lint import lint
from tests.calibration.small_graphs import multiply
from tests.calibration.small_graphs import run as run_graph
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
    stored = RoundedCodes("w", Array(rows))
    codes, scale = stored.codes.numpy(), stored.scale.numpy()
    assert codes.dtype == np.int8 and codes.shape == (width, channels) and scale.shape == (channels,)
    assert codes.min(initial=0) >= -127
    error = np.abs(codes.T * scale[:, None] - rows)
    assert (error <= 0.5001 * scale[:, None]).all()
    np.testing.assert_allclose(np.abs(codes.T * scale[:, None]).max(1), np.abs(rows).max(1), rtol=1e-5)


def test_rows_whose_scale_is_no_float32_are_zero() -> None:
    rows = np.full((40, 8), 1e-44, np.float32)
    with np.errstate(all="raise", under="ignore"):
        static, dynamic = RoundedCodes("w", Array(rows)), BlockCodes("w", Array(rows))
        assert not static.codes.numpy().any() and not dynamic.codes.numpy().any()
    assert (static.scale.numpy() == 1).all() and (dynamic.scale.numpy() == 1).all()


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


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_codes_chosen_on_rounded_inputs_keep_the_model_near(name: str, tmp_path: Path) -> None:
    described, expressions = rotated(decoder(**VARIANTS[name]), random_weights(decoder(**VARIANTS[name])))
    scheme = Static(Grid(8, 32), Grid(8, 32))
    tokens = np.random.default_rng(1).integers(0, VOCAB, (48, 24))
    fresh = np.random.default_rng(2).integers(0, VOCAB, (4, 24))
    errors = {}
    for method in ("rtn", "gptq"):
        model = canonical(described, expressions)
        run_pipeline(model, ORT_PIPELINE, verify=False)
        exact = run(model, described, fresh)["logits"]
        folder = tmp_path / method
        folder.mkdir()
        down = {f"layers.{i}.ffn.down" for i in (0, 1)}
        chosen = calibrate(model, scheme, tokens, folder, lambda *told: None, down)
        sites = static_sites(model, down)
        assert {str(site.table.name) for site in sites} == set(chosen.codes)
        codes = chosen.codes if method == "gptq" else {}
        ranges = chosen.ranges_of(sites)
        quantize_products(model, sites, ranges, codes)
        errors[method] = float(np.square(run(model, described, fresh)["logits"] - exact).mean())
        for stored in codes.values():
            array, scale = stored.codes.numpy(), stored.scale.numpy()
            assert array.dtype == np.int8 and array.min() >= -127 and (scale >= 0).all()
            assert array.shape == tuple(stored.codes.shape) and scale.shape == array.shape[1:]
    assert 0 < errors["gptq"] < 1.2 * errors["rtn"]  # random inputs hardly tell which errors matter


def test_rounding_to_a_range_is_what_onnxruntime_does() -> None:
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32) * 3
    for ends in ((-2.0, 3.0), (0.5, 1.0), (-4.0, -1.0)):
        scale, zero = grid_of(ends)
        wanted = (np.clip(np.rint(values / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale)
        np.testing.assert_allclose(rounded_to(values, ends), wanted, rtol=1e-6)


def test_one_scale_a_channel_is_chosen_for_the_outputs_on_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 96)).astype(np.float32)
    x = (rng.standard_normal((800, 12)) @ rng.standard_normal((12, 96))).astype(np.float32)
    inputs = gptq.objective(np.asarray(x.T @ x / len(x), np.float64))
    coded = gptq.quantize(weight, inputs, Channels.of(96))
    assert coded.scale.shape == (40, 1) and coded.codes.max() <= 254
    chosen = (coded.codes.astype(np.float32) - 127) * coded.scale.astype(np.float32)
    errors = [np.square(x @ (worth - weight).T).mean() for worth in (chosen, nearest(weight))]
    assert errors[0] < 0.3 * errors[1]


def test_inputs_of_unequal_tokens_are_rounded_token_by_token_in_integers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 96)).astype(np.float32)
    model = multiply(Array(weight))
    sites = static_sites(model, {"layers.0.ffn.down"})
    quantize_products(model, sites, {})
    x = rng.standard_normal((1, 5, 96)).astype(np.float32)
    x[0, 1] *= 3000
    x[0, 2] = 0
    found = run_graph(model, tmp_path / "run", x=x)[0]
    wanted = x @ weight.T
    np.testing.assert_allclose(found, rows_rounded(x) @ nearest(weight).T, rtol=1e-4, atol=1e-4)
    error = np.square(found - wanted).sum(-1) / np.maximum(np.square(wanted).sum(-1), 1e-12)
    assert error.max() < 1e-3 and not found[0, 2].any()
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    ort.InferenceSession(tmp_path / "run" / "model.onnx", options)
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    assert "MatMulIntegerToFloat" in [node.op_type for node in optimized.graph.node]
