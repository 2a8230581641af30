"""Qwen 3 (Yang et al. 2025): Qwen 2 with an RMSNorm over each head of q and k in place of the biases."""

from __future__ import annotations

from exporter.config import Size
from exporter.decoder import Decoder
from exporter.families import qwen2
from exporter.families._blocks import gated_decoder, gated_layers

ARCHITECTURES = ("Qwen3ForCausalLM",)


class Config(qwen2.Config):
    head_dim: Size | None = 128
    attention_bias: bool = False


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    layers = gated_layers(config, windows=config.windows(), qkv_bias=bias, o_bias=bias, qk_norm=True)
    return gated_decoder("qwen3", config, layers)
