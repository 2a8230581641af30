"""MPT (MosaicML 2023): linear biases in the place of positions, LayerNorms without bias, no biases at all.

q, k and v are one tensor, one after the other. Padding between two tokens makes them further apart. Queries, keys and
values that are clipped (``clip_qkv``), norms of q and k, prefixes that see themselves and heads that share keys and
values are refused by name.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import pydantic

from exporter.alibi import slopes
from exporter.config import Epsilon, FamilyConfig, Layers, Positive, Size
from exporter.decoder import Alibi, Attention, Decoder, FeedForward, Layer, Part
from exporter.families._blocks import head, layer_norm, linear
from exporter.families._rows import slices

ARCHITECTURES = ("MptForCausalLM",)


class AttentionConfig(FamilyConfig):
    """The section ``attn_config``."""

    absent: ClassVar = {
        "alibi": (True,),
        "alibi_bias_max": (8,),  # which transformers takes it to be, whatever is said here
        "attn_impl": ("torch", "triton", "flash"),
        "attn_type": ("multihead_attention",),
        "attn_uses_sequence_id": (True, False),  # which transformers never reads
        "clip_qkv": (None,),
        "prefix_lm": (False,),
        "qk_ln": (False,),
    }

    softmax_scale: Positive | None = None


class Config(FamilyConfig):
    absent: ClassVar = {
        "embedding_fraction": (1.0, 1),
        "expansion_ratio": (4,),
        "learned_pos_emb": (True, False),  # which MPT reads where there are no biases by position
        "logit_scale": (None,),
        "no_bias": (True,),
        "norm_type": ("low_precision_layernorm", "layernorm"),
        "verbose": (0,),
    }

    d_model: Size
    n_heads: Size
    n_layers: Layers
    vocab_size: Size
    max_seq_len: Size = 2048
    layer_norm_epsilon: Epsilon = 1e-5
    init_config: dict[str, Any] | None = None  # of training
    init_device: str | None = "cpu"
    attn_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = True

    @property
    def head_size(self) -> int:
        """Channels of one head, D."""
        return self.d_model // self.n_heads

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, epsilon = config.d_model, config.n_heads, config.layer_norm_epsilon
    own = AttentionConfig.parse(config.attn_config or {}, "mpt")
    embedding = Part("transformer.wte.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        q, k, v = slices(linear(f"{at}.attn.Wqkv", 3 * hidden, hidden), hidden, hidden, hidden)
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=config.head_size,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.attn.out_proj", hidden, hidden),
                scale=own.softmax_scale or config.head_size**-0.5,
                alibi=Alibi(slopes(heads), counts_padding=True),
            ),
            ffn=FeedForward(
                up=linear(f"{at}.ffn.up_proj", 4 * hidden, hidden),
                down=linear(f"{at}.ffn.down_proj", hidden, 4 * hidden),
                activation="gelu",
            ),
            attention_norm=layer_norm(f"{at}.norm_1", hidden, epsilon, bias=False),
            ffn_norm=layer_norm(f"{at}.norm_2", hidden, epsilon, bias=False),
        )

    return Decoder(
        family="mpt",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_seq_len,
        embedding=embedding,
        layers=tuple(layer(f"transformer.blocks.{i}") for i in range(config.n_layers)),
        norm=layer_norm("transformer.norm_f", hidden, epsilon, bias=False),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
