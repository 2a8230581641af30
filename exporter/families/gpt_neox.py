"""GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward side by side, both reading the same x.

q, k and v are one tensor, interleaved by head. A share of each head's channels rotates.
"""

from __future__ import annotations

from typing import Self

import pydantic

from exporter.config import Epsilon, HeadsConfig, Positive, Share, Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, head, layer_norm, linear
from exporter.families._rows import thirds
from exporter.rope import DEFAULT_THETA, rope_of

ARCHITECTURES = ("GPTNeoXForCausalLM",)
IGNORED = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
"""Causal masks and rotary tables that old versions of transformers saved."""


class Config(HeadsConfig):
    num_key_value_heads: None = None
    head_dim: None = None
    max_position_embeddings: Size = 2048
    hidden_act: Ungated = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    rotary_pct: Share = 0.25
    rotary_emb_base: Positive = DEFAULT_THETA
    partial_rotary_factor: Share | None = None
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False

    @pydantic.model_validator(mode="after")
    def _spellings_agree(self) -> Self:
        """The last versions of transformers 4 wrote each of these under two names."""
        if self.rope_theta not in (None, self.rotary_emb_base):
            raise ValueError(f"rope_theta {self.rope_theta} is not rotary_emb_base {self.rotary_emb_base}")
        if self.partial_rotary_factor not in (None, self.rotary_pct):
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} is not rotary_pct {self.rotary_pct}"
            )
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, size = config.hidden_size, config.num_attention_heads, config.head_size
    inner, epsilon = config.intermediate_size, config.layer_norm_eps
    rope = rope_of(config, theta=config.rotary_emb_base, partial=config.rotary_pct)
    embedding = Part("gpt_neox.embed_in.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        bias = config.attention_bias
        packed = linear(f"{at}.attention.query_key_value", 3 * hidden, hidden, bias=bias)
        q, k, v = thirds(packed, heads)
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=size,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.attention.dense", hidden, hidden, bias=bias),
                scale=size**-0.5,
                rope=rope,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.dense_h_to_4h", inner, hidden, bias=True),
                down=linear(f"{at}.mlp.dense_4h_to_h", hidden, inner, bias=True),
                activation=ACTIVATIONS[config.hidden_act],
            ),
            attention_norm=layer_norm(f"{at}.input_layernorm", hidden, epsilon),
            ffn_norm=layer_norm(f"{at}.post_attention_layernorm", hidden, epsilon),
            parallel=config.use_parallel_residual,
        )

    return Decoder(
        family="gpt_neox",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"gpt_neox.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm("gpt_neox.final_layer_norm", hidden, epsilon),
        head=head(embedding, tied=config.tie_word_embeddings, name="embed_out"),
    )
