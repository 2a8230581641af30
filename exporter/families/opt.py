"""OPT (Zhang et al. 2022): GPT-2's layers with ReLU, projections stored apart, and two rows before the first position.

The 350M model alone normalises after its blocks and has embeddings narrower than its hidden states; either is refused
by name.
"""

from __future__ import annotations

from typing import ClassVar, Self

import pydantic

from exporter.config import FamilyConfig, Layers, Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, head, layer_norm, linear

ARCHITECTURES = ("OPTForCausalLM",)
OFFSET = 2
"""Rows of the table of positions that no token has: fairseq kept them for padding."""
EPSILON = 1e-5
"""Of all norms; no key says it."""


class Config(FamilyConfig):
    absent: ClassVar = {
        "_remove_final_layer_norm": (False,),
        "do_layer_norm_before": (True,),
        "layer_norm_elementwise_affine": (True,),
    }

    vocab_size: Size
    hidden_size: Size
    ffn_dim: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    max_position_embeddings: Size = 2048
    word_embed_proj_dim: Size | None = None
    activation_function: Ungated = "relu"
    enable_bias: bool = True
    tie_word_embeddings: bool = True

    @pydantic.model_validator(mode="after")
    def _dims_fit(self) -> Self:
        if self.word_embed_proj_dim not in (None, self.hidden_size):
            raise ValueError(
                f"word_embed_proj_dim {self.word_embed_proj_dim} is not hidden_size {self.hidden_size}: embeddings "
                "that are projected are not implemented"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads"
            )
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.enable_bias
    size, context = hidden // heads, config.max_position_embeddings
    embedding = Part("model.decoder.embed_tokens.weight", (config.vocab_size, hidden))

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
                up=linear(f"{at}.fc1", config.ffn_dim, hidden, bias=bias),
                down=linear(f"{at}.fc2", hidden, config.ffn_dim, bias=bias),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.self_attn_layer_norm", hidden, EPSILON),
            ffn_norm=layer_norm(f"{at}.final_layer_norm", hidden, EPSILON),
        )

    return Decoder(
        family="opt",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=context,
        embedding=embedding,
        positions=Part(
            "model.decoder.embed_positions.weight",
            (context, hidden),
            stored=(context + OFFSET, hidden),
            rows=((OFFSET, context + OFFSET),),
        ),
        layers=tuple(layer(f"model.decoder.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm("model.decoder.final_layer_norm", hidden, EPSILON),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
