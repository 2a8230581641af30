"""GPT-J (Wang & Komatsuzaki 2021): attention and feed-forward side by side behind one norm, rotary pairs kept together.

A share of each head's channels rotates. Their rows in q and k are taken apart here, so that the halves of pairs lie
apart as in all other families; scores do not change.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import pydantic

from exporter.config import Epsilon, FamilyConfig, Layers, Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, head, layer_norm, linear
from exporter.rope import DEFAULT_THETA, rope

ARCHITECTURES = ("GPTJForCausalLM",)
IGNORED = (r"transformer\.h\.\d+\.attn\.(masked_)?bias",)
"""Causal masks that old versions of transformers saved."""


class Config(FamilyConfig):
    absent: ClassVar = {"rotary": (True,), "scale_attn_weights": (True,)}  # written once, and read by nobody

    vocab_size: Size
    n_positions: Size = 2048
    n_embd: Size
    n_layer: Layers
    n_head: Size
    n_inner: Size | None = None
    rotary_dim: Size = 64
    activation_function: Ungated = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: bool = False

    @pydantic.model_validator(mode="after")
    def _dims_fit(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        if self.rotary_dim % 2 or self.rotary_dim > self.n_embd // self.n_head:
            raise ValueError(
                f"rotary_dim {self.rotary_dim} is no even part of a head of {self.n_embd // self.n_head} channels"
            )
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, epsilon = config.n_embd, config.n_head, config.layer_norm_epsilon
    size, inner, rotated = hidden // heads, config.n_inner or 4 * hidden, config.rotary_dim
    positions = rope({}, DEFAULT_THETA, rotated, config.n_positions)
    embedding = Part("transformer.wte.weight", (config.vocab_size, hidden))

    def apart(linear: Linear) -> Linear:
        """Rows of each head: first ones of pairs, second ones, those that do not rotate."""
        rows: list[tuple[int, int]] = []
        for start in range(0, hidden, size):
            end = start + rotated
            rows += [(i, i + 1) for i in (*range(start, end, 2), *range(start + 1, end, 2))]
            rows += [(end, start + size)] if rotated < size else []
        return Linear(dataclasses.replace(linear.weight, stored=(hidden, hidden), rows=tuple(rows)))

    def layer(at: str) -> Layer:
        q, k, v, o = (linear(f"{at}.attn.{name}_proj", hidden, hidden) for name in ("q", "k", "v", "out"))
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=size,
                q=apart(q),
                k=apart(k),
                v=v,
                o=o,
                scale=size**-0.5,
                rope=positions,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.fc_in", inner, hidden, bias=True),
                down=linear(f"{at}.mlp.fc_out", hidden, inner, bias=True),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.ln_1", hidden, epsilon),
            ffn_norm=None,
            parallel=True,
        )

    return Decoder(
        family="gptj",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.n_positions,
        embedding=embedding,
        layers=tuple(layer(f"transformer.h.{i}") for i in range(config.n_layer)),
        norm=layer_norm("transformer.ln_f", hidden, epsilon),
        head=head(embedding, tied=config.tie_word_embeddings, bias=True),
    )
