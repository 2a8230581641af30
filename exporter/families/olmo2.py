"""OLMo 2 (OLMo Team 2024): Llama's blocks with norms behind them and none before, and norms over all of q and of k."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder, Layer, Rope
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers, rms_norm
from exporter.rope import rope_of

ARCHITECTURES = ("Olmo2ForCausalLM",)


class Config(GatedConfig):
    max_position_embeddings: Size = 2048
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False


def describe(config: Config) -> Decoder:
    count = config.num_hidden_layers
    return normed_behind("olmo2", config, [None] * count, [rope_of(config)] * count)


def normed_behind(
    family: str, config: Config, windows: Sequence[int | None], ropes: Sequence[Rope]
) -> Decoder:
    """A model of such layers.

    Args:
        windows, ropes: of each layer.
    """
    bias = config.attention_bias
    layers = gated_layers(config, windows=windows, ropes=ropes, qkv_bias=bias, o_bias=bias)
    return gated_decoder(family, config, [_normed_behind(i, layer, config) for i, layer in enumerate(layers)])


def _normed_behind(i: int, layer: Layer, config: Config) -> Layer:
    attention, at = layer.attention, f"model.layers.{i}"
    size, epsilon = attention.head_dim, config.rms_norm_eps
    return dataclasses.replace(
        layer,
        attention=dataclasses.replace(
            attention,
            q_norm=rms_norm(f"{at}.self_attn.q_norm", attention.heads * size, epsilon),
            k_norm=rms_norm(f"{at}.self_attn.k_norm", attention.kv_heads * size, epsilon),
        ),
        attention_norm=None,
        attention_post_norm=rms_norm(f"{at}.post_attention_layernorm", config.hidden_size, epsilon),
        ffn_norm=None,
        ffn_post_norm=rms_norm(f"{at}.post_feedforward_layernorm", config.hidden_size, epsilon),
    )
