"""ERNIE 4.5 without experts (Baidu 2025): Llama's layers, rotary pairs kept together."""

from __future__ import annotations

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.rope import rope_of

ARCHITECTURES = ("Ernie4_5ForCausalLM",)
THETA = 500_000.0
"""Base of the frequencies where the configuration names none."""


class Config(GatedConfig):
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131_072
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    use_bias: bool = False


def describe(config: Config) -> Decoder:
    bias = config.use_bias
    layers = gated_layers(
        config,
        ropes=[rope_of(config, theta=THETA)] * config.num_hidden_layers,
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=bias,
        pairs_together=True,
    )
    return gated_decoder("ernie4_5", config, layers)
