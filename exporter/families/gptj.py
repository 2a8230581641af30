"""GPT-J (Wang & Komatsuzaki 2021): attention and feed-forward side by side behind one norm, rotary pairs kept together.

A share of each head's channels rotates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import pydantic

from exporter.config import Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear
from exporter.families import _gpt
from exporter.families._blocks import ACTIVATIONS, layer_norm, linear
from exporter.families._gpt import GptConfig, gpt_decoder
from exporter.families._rows import pairs_apart
from exporter.rope import DEFAULT_THETA, rope

ARCHITECTURES = ("GPTJForCausalLM",)
IGNORED = _gpt.IGNORED


class Config(GptConfig):
    absent: ClassVar = {"rotary": (True,), "scale_attn_weights": (True,)}  # written once, and read by nobody

    rotary_dim: Size = 64
    tie_word_embeddings: bool = False

    @pydantic.model_validator(mode="after")
    def _part_of_a_head(self) -> Self:
        if self.rotary_dim % 2 or self.rotary_dim > self.head_size:
            raise ValueError(
                f"rotary_dim {self.rotary_dim} is no even part of a head of {self.head_size} channels"
            )
        return self


def describe(config: Config) -> Decoder:
    hidden = config.n_embd

    def projections(at: str) -> list[Linear]:
        return [linear(f"{at}.{name}_proj", hidden, hidden) for name in "qkv"]

    return parallel_decoder("gptj", config, projections)


def parallel_decoder(family: str, config: Config, projections: Callable[[str], Sequence[Linear]]) -> Decoder:
    """A model of GPT-J's layers.

    Args:
        projections: q, k and v by the name of an attention.
    """
    hidden, heads, size, inner = config.n_embd, config.n_head, config.head_size, config.inner
    positions = rope({}, DEFAULT_THETA, config.rotary_dim, config.n_positions)

    def layer(at: str) -> Layer:
        q, k, v = projections(f"{at}.attn")
        together = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=size,
            q=q,
            k=k,
            v=v,
            o=linear(f"{at}.attn.out_proj", hidden, hidden),
            scale=size**-0.5,
            rope=positions,
        )
        return Layer(
            attention=pairs_apart(together),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.fc_in", inner, hidden, bias=True),
                down=linear(f"{at}.mlp.fc_out", hidden, inner, bias=True),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.ln_1", hidden, config.layer_norm_epsilon),
            ffn_norm=None,
            parallel=True,
        )

    layers = [layer(f"transformer.h.{i}") for i in range(config.n_layer)]
    return gpt_decoder(family, config, layers, positions=False, head_bias=True)
