"""BLOOM (BigScience 2022): GPT-2's layers with linear biases in the place of learned positions, and a LayerNorm behind
the embedding.

q, k and v are one tensor, interleaved by head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic

from exporter.alibi import slopes
from exporter.config import Epsilon, FamilyConfig, Layers, Size, invalid
from exporter.decoder import Alibi, Attention, Decoder, FeedForward, Layer, Part
from exporter.families._blocks import head, layer_norm, linear
from exporter.families._rows import thirds

ARCHITECTURES = ("BloomForCausalLM",)

SPELLINGS = {"n_embed": "hidden_size", "num_attention_heads": "n_head"}
"""Keys of old files, and what they are called now."""


class Config(FamilyConfig):
    absent: ClassVar = {
        "apply_residual_connection_post_layernorm": (False,),
        "n_inner": (None,),
        # How Megatron computed the same: kernels, sums of parts, and where a first position begins.
        "attention_softmax_in_fp32": (True, False),
        "bias_dropout_fusion": (True, False),
        "masked_softmax_fusion": (True, False),
        "offset_alibi": (100,),
        "skip_bias_add": (True, False),
        "skip_bias_add_qkv": (True, False),
        "slow_but_exact": (True, False),
        "unk_token_id": (0,),
    }

    vocab_size: Size
    hidden_size: Size
    n_layer: Layers
    n_head: Size
    seq_length: Size = 2048  # of all that were trained; transformers does not write it
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: bool = True

    @classmethod
    def parse(cls, config: Mapping[str, Any], family: str) -> Self:
        """The first files spell sizes otherwise; where both are there, they agree."""
        told = {SPELLINGS.get(key, key): value for key, value in config.items()}
        differing = [
            f"{old} {config[old]!r}, {new} {config[new]!r}"
            for old, new in SPELLINGS.items()
            if old in config and config.get(new, config[old]) != config[old]
        ]
        if differing:
            raise invalid("config.json contradicts itself", *differing)
        return super().parse(told, family)

    @property
    def head_size(self) -> int:
        """Channels of one head, D."""
        return self.hidden_size // self.n_head

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.n_head:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of n_head {self.n_head}")
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, epsilon = config.hidden_size, config.n_head, config.layer_norm_epsilon
    embedding = Part("transformer.word_embeddings.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        q, k, v = thirds(linear(f"{at}.self_attention.query_key_value", 3 * hidden, hidden, bias=True), heads)
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=config.head_size,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.self_attention.dense", hidden, hidden, bias=True),
                scale=config.head_size**-0.5,
                alibi=Alibi(slopes(heads)),
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.dense_h_to_4h", 4 * hidden, hidden, bias=True),
                down=linear(f"{at}.mlp.dense_4h_to_h", hidden, 4 * hidden, bias=True),
                activation="gelu_tanh",
            ),
            attention_norm=layer_norm(f"{at}.input_layernorm", hidden, epsilon),
            ffn_norm=layer_norm(f"{at}.post_attention_layernorm", hidden, epsilon),
        )

    return Decoder(
        family="bloom",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.seq_length,
        embedding=embedding,
        embedding_norm=layer_norm("transformer.word_embeddings_layernorm", hidden, epsilon),
        layers=tuple(layer(f"transformer.h.{i}") for i in range(config.n_layer)),
        norm=layer_norm("transformer.ln_f", hidden, epsilon),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
