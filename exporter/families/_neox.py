"""What decoders that come from GPT-NeoX share: q, k and v in one tensor, interleaved by head, and names of tensors."""

from __future__ import annotations

from typing import Self

import pydantic

from exporter.config import Epsilon, HeadsConfig, Positive, Share, Size
from exporter.decoder import Attention, FeedForward, Layer, Rope
from exporter.families._blocks import ACTIVATIONS, Ungated, layer_norm, linear
from exporter.families._rows import thirds
from exporter.rope import DEFAULT_THETA, rope_of


class NeoxConfig(HeadsConfig):
    """Keys that they spell alike."""

    num_key_value_heads: None = None
    head_dim: None = None
    hidden_act: Ungated = "gelu"
    layer_norm_eps: Epsilon = 1e-5

    @property
    def inner(self) -> int:
        """Neurons of a feed-forward, F."""
        return self.intermediate_size


class RotaryNeoxConfig(NeoxConfig):
    """The same with GPT-NeoX's names of what rotates."""

    max_position_embeddings: Size = 2048
    rotary_pct: Share = 1.0
    rotary_emb_base: Positive = DEFAULT_THETA
    partial_rotary_factor: Share | None = None

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

    @property
    def rope(self) -> Rope:
        return rope_of(self, theta=self.rotary_emb_base, partial=self.rotary_pct)


def neox_layer(
    at: str,
    config: NeoxConfig,
    rope: Rope,
    *,
    attention: str = "attention",
    attention_bias: bool = True,
    ffn_bias: bool = True,
    parallel: bool = False,
) -> Layer:
    """A layer by what names of its tensors begin with.

    Args:
        attention: what follows in those of the attention.
        parallel: attention and feed-forward side by side, both reading the same x.
    """
    hidden, inner, heads = config.hidden_size, config.inner, config.num_attention_heads
    packed = linear(f"{at}.{attention}.query_key_value", 3 * hidden, hidden, bias=attention_bias)
    q, k, v = thirds(packed, heads)
    return Layer(
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=config.head_size,
            q=q,
            k=k,
            v=v,
            o=linear(f"{at}.{attention}.dense", hidden, hidden, bias=attention_bias),
            scale=config.head_size**-0.5,
            rope=rope,
        ),
        ffn=FeedForward(
            up=linear(f"{at}.mlp.dense_h_to_4h", inner, hidden, bias=ffn_bias),
            down=linear(f"{at}.mlp.dense_4h_to_h", hidden, inner, bias=ffn_bias),
            activation=ACTIVATIONS[config.hidden_act],
        ),
        attention_norm=layer_norm(f"{at}.input_layernorm", hidden, config.layer_norm_eps),
        ffn_norm=layer_norm(f"{at}.post_attention_layernorm", hidden, config.layer_norm_eps),
        parallel=parallel,
    )
