"""GLM-4 9B Chat and GLM-Edge (GLM Team 2024): Llama's layers with biases on q, k and v, gate and up in one tensor, and
rotary pairs kept together.

A share of each head's channels rotates.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Epsilon, Share, Size
from exporter.decoder import Decoder, Layer
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers, packed_ffn
from exporter.rope import rope_of

ARCHITECTURES = ("GlmForCausalLM",)


class Config(GatedConfig):
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131_072
    rms_norm_eps: Epsilon = 1.5625e-07
    partial_rotary_factor: Share = 0.5
    attention_bias: bool = True


def describe(config: Config) -> Decoder:
    return gated_decoder("glm", config, packed_layers(config))


def packed_layers(config: Config) -> list[Layer]:
    """All layers, gate and up of each in one tensor."""
    rope = rope_of(config, partial=config.partial_rotary_factor)
    layers = gated_layers(
        config,
        ropes=[rope] * config.num_hidden_layers,
        qkv_bias=config.attention_bias,
        pairs_together=True,
    )
    hidden, inner = config.hidden_size, config.intermediate_size
    return [
        dataclasses.replace(layer, ffn=packed_ffn(f"model.layers.{i}.mlp", hidden, inner, config.activation))
        for i, layer in enumerate(layers)
    ]
