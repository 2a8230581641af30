"""Seed-OSS (ByteDance Seed 2025): Llama's layers with biases on q, k and v."""

from __future__ import annotations

from exporter.config import Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("SeedOssForCausalLM",)


class Config(GatedConfig):
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 524_288
    attention_bias: bool = True
    attention_out_bias: bool = False
    mlp_bias: bool = False


def describe(config: Config) -> Decoder:
    layers = gated_layers(
        config,
        qkv_bias=config.attention_bias,
        o_bias=config.attention_out_bias,
        ffn_bias=config.mlp_bias,
    )
    return gated_decoder("seed_oss", config, layers)
