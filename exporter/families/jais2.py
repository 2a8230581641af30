"""Jais 2 (Inception 2025): Llama's layers with LayerNorm and biases everywhere, relu² in the place of a gate."""

from __future__ import annotations

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder, Norm
from exporter.families._blocks import PlainConfig, gated_decoder, gated_layers, layer_norm

ARCHITECTURES = ("Jais2ForCausalLM",)


class Config(PlainConfig):
    max_position_embeddings: Size = 8192
    layer_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    mlp_bias: bool = True

    def norm(self, name: str, channels: int) -> Norm:
        return layer_norm(name, channels, self.layer_norm_eps)


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias, gated=False)
    return gated_decoder("jais2", config, layers)
