"""Persimmon (Adept 2023): GPT-NeoX's layers one block after the other, relu², and LayerNorms over each head of q and k.

A share of each head's channels rotates.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Share, Size
from exporter.decoder import Decoder, Layer, Part
from exporter.families._blocks import Ungated, head, layer_norm
from exporter.families._neox import NeoxConfig, neox_layer
from exporter.rope import rope_of

ARCHITECTURES = ("PersimmonForCausalLM",)


class Config(NeoxConfig):
    hidden_act: Ungated = "relu2"
    max_position_embeddings: Size = 16_384
    partial_rotary_factor: Share = 0.5
    qk_layernorm: bool = True
    tie_word_embeddings: bool = False


def describe(config: Config) -> Decoder:
    rope = rope_of(config, partial=config.partial_rotary_factor)
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))

    def layer(at: str) -> Layer:
        plain = neox_layer(at, config, rope, attention="self_attn")
        if not config.qk_layernorm:
            return plain
        q_norm, k_norm = (
            layer_norm(f"{at}.self_attn.{name}_layernorm", config.head_size, config.layer_norm_eps)
            for name in ("q", "k")
        )
        normed = dataclasses.replace(plain.attention, q_norm=q_norm, k_norm=k_norm)
        return dataclasses.replace(plain, attention=normed)

    return Decoder(
        family="persimmon",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm("model.final_layernorm", config.hidden_size, config.layer_norm_eps),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
