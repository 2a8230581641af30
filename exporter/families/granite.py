"""Granite 3 (Granite Team 2024): Llama with four multipliers, of embeddings, scores, what blocks add, and logits.

What blocks add is multiplied in their output maps, and logits are divided in the last norm's gain.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Positive, Size
from exporter.decoder import Decoder, Layer, Linear
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("GraniteForCausalLM",)


class Config(GatedConfig):
    max_position_embeddings: Size = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias)
    decoder = gated_decoder("granite", config, [_multiplied(layer, config) for layer in layers])
    gain = dataclasses.replace(decoder.norm.weight, times=1 / config.logits_scaling)
    return dataclasses.replace(
        decoder,
        embedding_scale=config.embedding_multiplier,
        norm=dataclasses.replace(decoder.norm, weight=gain),
    )


def _multiplied(layer: Layer, config: Config) -> Layer:
    attention, ffn, times = layer.attention, layer.ffn, config.residual_multiplier
    return dataclasses.replace(
        layer,
        attention=dataclasses.replace(
            attention, scale=config.attention_multiplier, o=_times(attention.o, times)
        ),
        ffn=dataclasses.replace(ffn, down=_times(ffn.down, times)),
    )


def _times(linear: Linear, times: float) -> Linear:
    bias = None if linear.bias is None else dataclasses.replace(linear.bias, times=times)
    return Linear(dataclasses.replace(linear.weight, times=times), bias)
