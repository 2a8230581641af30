"""Falcon (Almazrouei et al. 2023): attention and feed-forward side by side, heads that share keys and values.

The 7B has one norm for both blocks and one head of k and v. The 40B and 180B (``new_decoder_architecture``) have a norm
for each block and groups of heads, the 11B one norm and groups. Falcon-RW has blocks one after the other, and linear
biases in the place of rotary positions: rounded to bfloat16, and added before scores are scaled. q, k and v are one
tensor, interleaved by group of heads.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from exporter.alibi import slopes
from exporter.config import Epsilon, FamilyConfig, Layers, Positive, Size
from exporter.decoder import Alibi, Attention, Decoder, FeedForward, Layer, Linear, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, head, layer_norm, linear
from exporter.families._rows import rows_of, thirds
from exporter.rope import DEFAULT_THETA, rope

ARCHITECTURES = ("FalconForCausalLM",)
IGNORED = (r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq", r"transformer\.rotary_emb\.inv_freq")
"""Rotary tables that old versions of transformers saved."""


class Config(FamilyConfig):
    absent: ClassVar = {"apply_residual_connection_post_layernorm": (False,)}

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_kv_heads: Size | None = None
    ffn_hidden_size: Size | None = None
    num_ln_in_parallel_attn: Literal[1, 2] | None = None
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    alibi: bool = False
    bias: bool = False
    activation: Ungated = "gelu"
    layer_norm_epsilon: Epsilon = 1e-5
    max_position_embeddings: Size = 2048
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = True

    @property
    def head_size(self) -> int:
        """Channels of one head, D."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        if not self.new_decoder_architecture:
            return 1 if self.multi_query else self.num_attention_heads
        return self.num_kv_heads or self.num_attention_heads

    @property
    def has_two_norms(self) -> bool:
        """Whether parallel blocks have a norm each."""
        return self.new_decoder_architecture and self.num_ln_in_parallel_attn in (None, 2)

    @pydantic.model_validator(mode="after")
    def _dims_fit(self) -> Self:
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not split into {heads} heads")
        if heads % self.kv_heads:
            raise ValueError(f"{heads} heads do not share {self.kv_heads} kv heads evenly")
        if not (self.new_decoder_architecture or self.multi_query) and self.num_kv_heads not in (None, heads):
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}, and without multi_query each of {heads} has its own"
            )
        if self.num_ln_in_parallel_attn == 2 and not self.new_decoder_architecture:
            raise ValueError("num_ln_in_parallel_attn is 2, which new_decoder_architecture alone reads")
        if self.new_decoder_architecture and not self.parallel_attn:
            raise ValueError("parallel_attn is off, and layers of new_decoder_architecture are parallel")
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, size = config.hidden_size, config.num_attention_heads, config.head_size
    inner, epsilon, bias = config.ffn_hidden_size or 4 * hidden, config.layer_norm_epsilon, config.bias
    rotary = None
    if not config.alibi:
        parameters = (config.rope_scaling or {}) | (config.rope_parameters or {})
        stated = parameters.pop("rope_theta", config.rope_theta)
        theta = DEFAULT_THETA if stated is None else stated
        rotary = rope(parameters, theta, size, config.max_position_embeddings)
    biased = Alibi(slopes(heads), size**-0.5, bfloat16=True) if config.alibi else None
    embedding = Part("transformer.word_embeddings.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        width = (heads + 2 * config.kv_heads) * size
        q, k, v = _parted(linear(f"{at}.self_attention.query_key_value", width, hidden, bias=bias), config)
        two = config.has_two_norms
        before_ffn = f"{at}.ln_mlp" if two else f"{at}.post_attention_layernorm"
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=config.kv_heads,
                head_dim=size,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.self_attention.dense", hidden, hidden, bias=bias),
                scale=size**-0.5,
                rope=rotary,
                alibi=biased,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.dense_h_to_4h", inner, hidden, bias=bias),
                down=linear(f"{at}.mlp.dense_4h_to_h", hidden, inner, bias=bias),
                activation=ACTIVATIONS[config.activation],
            ),
            attention_norm=layer_norm(f"{at}.ln_attn" if two else f"{at}.input_layernorm", hidden, epsilon),
            ffn_norm=layer_norm(before_ffn, hidden, epsilon) if two or not config.parallel_attn else None,
            parallel=config.parallel_attn,
        )

    return Decoder(
        family="falcon",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"transformer.h.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm("transformer.ln_f", hidden, epsilon),
        head=head(embedding, tied=config.tie_word_embeddings),
    )


def _parted(packed: Linear, config: Config) -> list[Linear]:
    """q, k and v: the query heads of each group, then its k, then its v."""
    if config.kv_heads == config.num_attention_heads:
        return thirds(packed, config.kv_heads)
    rows = np.arange(packed.weight.shape[0]).reshape(config.kv_heads, -1, config.head_size)
    return [rows_of(packed, part.reshape(-1)) for part in (rows[:, :-2], rows[:, -2], rows[:, -1])]
