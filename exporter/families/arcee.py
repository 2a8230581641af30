"""Arcee's AFM 4.5B (Arcee AI 2025): Llama's layers, relu² in the place of a gate."""

from __future__ import annotations

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder, Norm
from exporter.families._blocks import PlainConfig, gated_decoder, gated_layers, rms_norm

ARCHITECTURES = ("ArceeForCausalLM",)


class Config(PlainConfig):
    max_position_embeddings: Size = 4096
    rms_norm_eps: Epsilon = 1e-5

    def norm(self, name: str, channels: int) -> Norm:
        return rms_norm(name, channels, self.rms_norm_eps)


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias, gated=False)
    return gated_decoder("arcee", config, layers)
