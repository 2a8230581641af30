"""GPT-2 (Radford et al. 2019) and nanoGPT: learned positions, LayerNorm, biases everywhere.

Linear maps are stored ``[in, out]`` (Conv1D), those of q, k and v as one tensor.
"""

from __future__ import annotations

from typing import Self

import pydantic

from exporter.config import Epsilon, FamilyConfig, Layers, Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, head, layer_norm

ARCHITECTURES = ("GPT2LMHeadModel",)
IGNORED = (r"transformer\.h\.\d+\.attn\.(masked_)?bias",)
"""Causal masks that old versions of transformers saved."""


class Config(FamilyConfig):
    vocab_size: Size
    n_positions: Size = 1024
    n_embd: Size
    n_layer: Layers
    n_head: Size
    n_inner: Size | None = None
    activation_function: Ungated = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False  # an order of float16 operations; in float32 the same function
    tie_word_embeddings: bool = True

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        return self


def describe(config: Config) -> Decoder:
    hidden, heads = config.n_embd, config.n_head
    size, inner = hidden // heads, config.n_inner or 4 * hidden
    embedding = Part("transformer.wte.weight", (config.vocab_size, hidden))

    def conv(name: str, out: int, into: int) -> Linear:
        return Linear(Part(f"{name}.weight", (out, into), transposed=True), Part(f"{name}.bias", (out,)))

    def third(name: str, which: int) -> Linear:
        rows = ((which * hidden, (which + 1) * hidden),)
        return Linear(
            Part(f"{name}.weight", (hidden, hidden), stored=(hidden, 3 * hidden), transposed=True, rows=rows),
            Part(f"{name}.bias", (hidden,), stored=(3 * hidden,), rows=rows),
        )

    def scale(i: int) -> float:
        scale = size**-0.5 if config.scale_attn_weights else 1.0
        return scale / (i + 1) if config.scale_attn_by_inverse_layer_idx else scale

    def layer(i: int) -> Layer:
        at = f"transformer.h.{i}"
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=size,
                q=third(f"{at}.attn.c_attn", 0),
                k=third(f"{at}.attn.c_attn", 1),
                v=third(f"{at}.attn.c_attn", 2),
                o=conv(f"{at}.attn.c_proj", hidden, hidden),
                scale=scale(i),
            ),
            ffn=FeedForward(
                up=conv(f"{at}.mlp.c_fc", inner, hidden),
                down=conv(f"{at}.mlp.c_proj", hidden, inner),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.ln_1", hidden, config.layer_norm_epsilon),
            ffn_norm=layer_norm(f"{at}.ln_2", hidden, config.layer_norm_epsilon),
        )

    return Decoder(
        family="gpt2",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.n_positions,
        embedding=embedding,
        positions=Part("transformer.wpe.weight", (config.n_positions, hidden)),
        layers=tuple(layer(i) for i in range(config.n_layer)),
        norm=layer_norm("transformer.ln_f", hidden, config.layer_norm_epsilon),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
