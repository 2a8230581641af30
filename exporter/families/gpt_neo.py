"""GPT-Neo (Black et al. 2021) and TinyStories (Eldan & Li 2023): GPT-2 with scores that are not scaled, and layers that
see a window alone, in turn with others.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic

from exporter.config import Epsilon, FamilyConfig, Layers, Size, invalid
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Part
from exporter.families import _gpt
from exporter.families._blocks import ACTIVATIONS, Ungated, head, layer_norm, linear

ARCHITECTURES = ("GPTNeoForCausalLM",)
IGNORED = _gpt.IGNORED

Kind = Literal["global", "local"]
Times = Annotated[tuple[list[Kind], Layers], pydantic.Strict(False)]
"""Kinds of layers, and how often they follow each other. JSON has no tuples."""
IN_TURN: list[Times] = [(["global", "local"], 12)]


class Config(FamilyConfig):
    vocab_size: Size
    max_position_embeddings: Size = 2048
    hidden_size: Size
    num_layers: Layers
    num_heads: Size
    intermediate_size: Size | None = None
    attention_types: list[Times] | None = None
    attention_layers: list[Kind] | None = None
    window_size: Size = 256
    activation_function: Ungated = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: bool = True

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not split into {self.num_heads} heads")
        return self

    def windows(self) -> list[int | None]:
        """Of each layer. transformers writes their kinds twice, as ``attention_types`` and one by one."""
        types = IN_TURN if self.attention_types is None else self.attention_types
        said = [kind for kinds, times in types for kind in kinds * times]
        kinds = said if self.attention_layers is None else self.attention_layers
        if len(kinds) != self.num_layers or (self.attention_types is not None and kinds != said):
            raise invalid(
                "config.json contradicts itself",
                f"attention_types has {len(said)} layers, attention_layers {len(kinds)}, num_layers is "
                f"{self.num_layers}, and all must say the same",
            )
        return [self.window_size if kind == "local" else None for kind in kinds]


def describe(config: Config) -> Decoder:
    hidden, heads, epsilon = config.hidden_size, config.num_heads, config.layer_norm_epsilon
    inner, context = config.intermediate_size or 4 * hidden, config.max_position_embeddings
    embedding = Part("transformer.wte.weight", (config.vocab_size, hidden))

    def layer(at: str, window: int | None) -> Layer:
        q, k, v = (linear(f"{at}.attn.attention.{name}_proj", hidden, hidden) for name in "qkv")
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=hidden // heads,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.attn.attention.out_proj", hidden, hidden, bias=True),
                scale=1.0,
                window=window,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.c_fc", inner, hidden, bias=True),
                down=linear(f"{at}.mlp.c_proj", hidden, inner, bias=True),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.ln_1", hidden, epsilon),
            ffn_norm=layer_norm(f"{at}.ln_2", hidden, epsilon),
        )

    return Decoder(
        family="gpt_neo",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=context,
        embedding=embedding,
        positions=Part("transformer.wpe.weight", (context, hidden)),
        layers=tuple(layer(f"transformer.h.{i}", window) for i, window in enumerate(config.windows())),
        norm=layer_norm("transformer.ln_f", hidden, epsilon),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
