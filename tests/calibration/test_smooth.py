"""Scaled channels change no function, and smoothing and AWQ make what is rounded less wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from calibration.transforms.rotation import rotated
from calibration.transforms.scaling import givers, of_giver, of_readers, scaled
from calibration.transforms.smoothing import smooth
from exporter.decoder import Decoder
from exporter.weights import Array, Weight
from graph_passes import ORT_PIPELINE, run_pipeline
from tests.calibration.test_rotation import SHAPES, _rows_agree
from tests.graph_passes.decoders import VOCAB, canonical, decoder, random_weights, run_chunks, session, whole


def random_scales(described: Decoder, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {"attention_norm": 64, "ffn_norm": 64, "ffn.up": 96}
    found = {}
    for giver in givers(described):
        attention = described.layers[0].attention
        size = sizes.get(giver.split(".", 2)[2], attention.kv_heads * attention.head_dim)
        found[giver] = np.exp(rng.uniform(-2, 2, size)).astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("name", "turn"),
    [*((name, False) for name in SHAPES), ("llama", True), ("gpt2_tied", True), ("gemma3", True)],
)
def test_a_scaled_decoder_is_the_same_function(name: str, turn: bool) -> None:
    described = decoder(**SHAPES[name])
    weights = random_weights(described)
    base, expressions = rotated(described, weights) if turn else (described, dict(weights))
    tokens = np.random.default_rng(0).integers(0, VOCAB, 20)
    changed, smooth = scaled(base, expressions, random_scales(base))
    logits = []
    for one, its in ((described, weights), (changed, smooth)):
        model = canonical(one, its)
        run_pipeline(model, ORT_PIPELINE, verify=False)
        logits.append(run_chunks(session(model), one, whole(tokens))[0][0])
    np.testing.assert_allclose(logits[1], logits[0], atol=3e-3 * np.abs(logits[0]).max())
    for role, weight in smooth.items():
        if weight is not expressions[role]:
            before = expressions[role].read()
            assert not before.any() or not np.allclose(weight.read(), before)
            _rows_agree(role, weight)


def test_what_an_activation_bends_is_not_scaled() -> None:
    assert "layers.0.ffn.up" in givers(decoder()) and "layers.0.ffn.up" in givers(decoder(**SHAPES["relu"]))
    assert "layers.0.ffn.up" not in givers(decoder(**SHAPES["gpt2"]))
    assert "layers.0.ffn.up" not in givers(decoder(**SHAPES["relu2"]))


def test_a_norm_without_a_gain_is_not_scaled() -> None:
    assert givers(decoder(layers=1, **SHAPES["relu2"])) == ("layers.0.attention.v",)


def test_scales_of_shared_heads_are_one() -> None:
    described = decoder(heads=4, kv_heads=2, head_dim=16)
    scale = np.exp(np.random.default_rng(0).standard_normal(64)).astype(np.float32)
    own = of_giver(described, "layers.0.attention.v", scale)
    assert own.shape == (32,)
    wide = of_readers(described, "layers.0.attention.v", own)
    np.testing.assert_allclose(wide[:16], wide[16:32])
    np.testing.assert_allclose(of_giver(described, "layers.0.attention.v", wide), own, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "relu", "gpt2"])
def test_smoothing_makes_static_products_less_wrong(name: str, tmp_path: Path) -> None:
    described = decoder(**SHAPES[name])
    weights = outlier(described)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (8, 24))
    found = []
    for step in (0, 1):
        model = canonical(described, weights)
        run_pipeline(model, ORT_PIPELINE, verify=False)
        folder = tmp_path / str(step)
        folder.mkdir()
        found.append(smooth(described, model, tokens, givers(described), folder, lambda *told: None))
        _, weights = scaled(described, weights, found[0].scales)
    first, second = found[0], found[1]
    assert set(first.errors) == {f"layers.{i}.{part}" for i in (0, 1) for part in ("attention.o", "ffn.down")}
    assert ("layers.0.ffn.up" in first.scales) == (name != "gpt2")
    if name != "gpt2":  # where nothing can be scaled it is only told how wrong the product is
        unscaled = errors_of(described, tokens, name, tmp_path)
        assert first.errors["layers.0.ffn.down"] < 0.3 * unscaled["layers.0.ffn.down"]
        assert second.errors["layers.0.ffn.down"] <= 1.5 * first.errors["layers.0.ffn.down"]


def outlier(described: Decoder) -> dict[str, Weight]:
    """Weights with a channel of down's inputs that stands out in every token, and matters no more than the others."""
    weights = random_weights(described)
    up, down = (weights[f"layers.0.ffn.{name}.weight"].read().copy() for name in ("up", "down"))
    up[7] *= 200
    down[:, 7] /= 200
    return {**weights, "layers.0.ffn.up.weight": Array(up), "layers.0.ffn.down.weight": Array(down)}


def errors_of(described: Decoder, tokens: np.ndarray, name: str, tmp_path: Path) -> Mapping[str, float]:
    """Errors without any scale."""
    model = canonical(described, outlier(described))
    run_pipeline(model, ORT_PIPELINE, verify=False)
    folder = tmp_path / "unscaled"
    folder.mkdir()
    return smooth(described, model, tokens, (), folder, lambda *told: None).errors
