"""What decoders that come from fairseq share: keys, names of tensors, and rows of positions that no token has."""

from __future__ import annotations

from typing import Protocol, Self

import pydantic

from exporter.config import FamilyConfig, Layers, Size
from exporter.decoder import Activation, Attention, Decoder, FeedForward, Layer, Part
from exporter.families._blocks import head, layer_norm, linear

OFFSET = 2
"""Rows of the table of positions that no token has: fairseq kept them for padding."""
EPSILON = 1e-5
"""Of all norms; no key that anybody reads says it."""


class FairseqConfig(FamilyConfig):
    """Keys that they spell alike."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    max_position_embeddings: Size
    tie_word_embeddings: bool = True

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads"
            )
        return self


class Sizes(Protocol):
    """What a decoder is made of, whatever a family calls it."""

    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...


def fairseq_decoder(
    family: str,
    config: Sizes,
    *,
    inner: int,
    activation: Activation,
    at: str,
    norm: str,
    head_name: str,
    bias: bool = True,
) -> Decoder:
    """A whole model.

    Args:
        inner: neurons of a feed-forward, F.
        at: what names of tensors begin with.
        norm, head_name: names of the last norm and of an untied head.
    """
    hidden, heads, context = config.hidden_size, config.num_attention_heads, config.max_position_embeddings
    size = hidden // heads
    embedding = Part(f"{at}.embed_tokens.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        q, k, v, o = (
            linear(f"{at}.self_attn.{name}_proj", hidden, hidden, bias=bias)
            for name in ("q", "k", "v", "out")
        )
        return Layer(
            attention=Attention(
                heads=heads, kv_heads=heads, head_dim=size, q=q, k=k, v=v, o=o, scale=size**-0.5
            ),
            ffn=FeedForward(
                up=linear(f"{at}.fc1", inner, hidden, bias=bias),
                down=linear(f"{at}.fc2", hidden, inner, bias=bias),
                activation=activation,
            ),
            attention_norm=layer_norm(f"{at}.self_attn_layer_norm", hidden, EPSILON),
            ffn_norm=layer_norm(f"{at}.final_layer_norm", hidden, EPSILON),
        )

    return Decoder(
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=context,
        embedding=embedding,
        positions=Part(
            f"{at}.embed_positions.weight",
            (context, hidden),
            stored=(context + OFFSET, hidden),
            rows=((OFFSET, context + OFFSET),),
        ),
        layers=tuple(layer(f"{at}.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm(f"{at}.{norm}", hidden, EPSILON),
        head=head(embedding, tied=config.tie_word_embeddings, name=head_name),
    )
