"""GLM-4-0414 and GLM-Z1 (GLM Team 2025): GLM's layers with a norm behind each block as well."""

from __future__ import annotations

import dataclasses

from exporter.decoder import Decoder
from exporter.families import glm
from exporter.families._blocks import gated_decoder

ARCHITECTURES = ("Glm4ForCausalLM",)


class Config(glm.Config):
    pass


def describe(config: Config) -> Decoder:
    hidden = config.hidden_size
    layers = [
        dataclasses.replace(
            layer,
            attention_post_norm=config.norm(f"model.layers.{i}.post_self_attn_layernorm", hidden),
            ffn_post_norm=config.norm(f"model.layers.{i}.post_mlp_layernorm", hidden),
        )
        for i, layer in enumerate(glm.packed_layers(config))
    ]
    return gated_decoder("glm4", config, layers)
