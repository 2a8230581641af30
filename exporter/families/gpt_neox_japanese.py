"""GPT-NeoX Japanese (ABEJA 2022): GPT-NeoX's layers one block after the other, without biases but for one, behind the
last layer's attention."""

from __future__ import annotations

import dataclasses

from exporter.config import Size
from exporter.decoder import Decoder, Layer, Linear, Part
from exporter.families._blocks import head, layer_norm
from exporter.families._neox import RotaryNeoxConfig, neox_layer

ARCHITECTURES = ("GPTNeoXJapaneseForCausalLM",)
IGNORED = (r"gpt_neox_japanese\.layers\.\d+\.attention\.rotary_emb\.inv_freq",)
"""Rotary tables that old versions of transformers saved."""


class Config(RotaryNeoxConfig):
    intermediate_size: None = None  # type: ignore[assignment]  # said otherwise:
    intermediate_multiple_size: Size = 4
    tie_word_embeddings: bool = True

    @property
    def inner(self) -> int:
        return self.intermediate_multiple_size * self.hidden_size


def describe(config: Config) -> Decoder:
    embedding = Part("gpt_neox_japanese.embed_in.weight", (config.vocab_size, config.hidden_size))

    def layer(at: str, *, last: bool) -> Layer:
        plain = neox_layer(at, config, config.rope, attention_bias=False, ffn_bias=False)
        bias = Part(f"{at}.attention.dense_bias", (config.hidden_size,)) if last else None
        o = Linear(plain.attention.o.weight, bias)
        return dataclasses.replace(plain, attention=dataclasses.replace(plain.attention, o=o))

    count = config.num_hidden_layers
    return Decoder(
        family="gpt_neox_japanese",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"gpt_neox_japanese.layers.{i}", last=i == count - 1) for i in range(count)),
        norm=layer_norm("gpt_neox_japanese.final_layer_norm", config.hidden_size, config.layer_norm_eps),
        head=head(embedding, tied=config.tie_word_embeddings, name="embed_out"),
    )
