"""HyperCLOVA X SEED Think (NAVER Cloud 2025): Granite with a norm behind each block as well.

Logits are multiplied where Granite divides them.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Positive, Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.families.granite import multiplied

ARCHITECTURES = ("HyperCLOVAXForCausalLM",)


class Config(GatedConfig):
    max_position_embeddings: Size = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive | None = None
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0
    use_post_norm: bool = True


def describe(config: Config) -> Decoder:
    bias, hidden = config.attention_bias, config.hidden_size
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias)
    if config.use_post_norm:
        layers = [
            dataclasses.replace(
                layer,
                attention_post_norm=config.norm(f"model.layers.{i}.post_norm1", hidden),
                ffn_post_norm=config.norm(f"model.layers.{i}.post_norm2", hidden),
            )
            for i, layer in enumerate(layers)
        ]
    return multiplied(
        gated_decoder("hyperclovax", config, layers),
        embeddings=config.embedding_multiplier,
        scale=config.attention_multiplier or config.head_size**-0.5,
        blocks=config.residual_multiplier,
        logits=config.logits_scaling,
    )
