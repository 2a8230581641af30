"""Granite 3 (Granite Team 2024): Llama with four multipliers, of embeddings, scores, what blocks add, and logits.

What blocks add is multiplied in their output maps, and logits are divided in the last norm's gain.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Positive, Size
from exporter.decoder import Decoder, Layer, Linear
from exporter.families._blocks import GatedConfig, gain_times, gated_decoder, gated_layers, scaled_logits

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
    return multiplied(
        gated_decoder("granite", config, layers),
        embeddings=config.embedding_multiplier,
        scale=config.attention_multiplier,
        blocks=config.residual_multiplier,
        logits=1 / config.logits_scaling,
    )


def multiplied(decoder: Decoder, *, embeddings: float, scale: float, blocks: float, logits: float) -> Decoder:
    """The same decoder with multipliers.

    Args:
        scale: of scores, in the place of the decoder's own.
        blocks: of what blocks add: in the norm behind a block, where there is one, else in its output map.
    """

    def layer(of: Layer) -> Layer:
        attention = dataclasses.replace(of.attention, scale=scale)
        if of.attention_post_norm is not None and of.ffn_post_norm is not None:
            return dataclasses.replace(
                of,
                attention=attention,
                attention_post_norm=gain_times(of.attention_post_norm, blocks),
                ffn_post_norm=gain_times(of.ffn_post_norm, blocks),
            )
        return dataclasses.replace(
            of,
            attention=dataclasses.replace(attention, o=_times(attention.o, blocks)),
            ffn=dataclasses.replace(of.ffn, down=_times(of.ffn.down, blocks)),
        )

    layers = tuple(layer(of) for of in decoder.layers)
    return scaled_logits(dataclasses.replace(decoder, embedding_scale=embeddings, layers=layers), logits)


def _times(linear: Linear, times: float) -> Linear:
    bias = None if linear.bias is None else dataclasses.replace(linear.bias, times=times)
    return Linear(dataclasses.replace(linear.weight, times=times), bias)
