"""Nemotron 3 8B, Nemotron 4 and Minitron (Parmar et al. 2024, Muralidharan et al. 2024): Llama's layers with LayerNorms
that store γ and use 1 + γ, and relu² in the place of a gate.

A share of each head's channels rotates.
"""

from __future__ import annotations

from exporter.config import Epsilon, Share, Size
from exporter.decoder import Decoder, Norm
from exporter.families._blocks import PlainConfig, gated_decoder, gated_layers, layer_norm
from exporter.rope import rope_of

ARCHITECTURES = ("NemotronForCausalLM",)


class Config(PlainConfig):
    max_position_embeddings: Size = 4096
    norm_eps: Epsilon = 1e-5
    partial_rotary_factor: Share = 0.5

    def norm(self, name: str, channels: int) -> Norm:
        return layer_norm(name, channels, self.norm_eps, plus=1.0)


def describe(config: Config) -> Decoder:
    bias, rope = config.attention_bias, rope_of(config, partial=config.partial_rotary_factor)
    layers = gated_layers(
        config,
        ropes=[rope] * config.num_hidden_layers,
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=config.mlp_bias,
        gated=False,
    )
    return gated_decoder("nemotron", config, layers)
