"""What the generations of Gemma share: norms around all blocks, which store γ and use 1 + γ, and scaled embeddings.

Embeddings are multiplied by √E; transformers rounds that factor to the dtype it runs in, so in float32 it is √E itself,
whatever the checkpoint was stored as.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from exporter.config import Epsilon, HeadsConfig, LayerType, Positive, Size
from exporter.decoder import Decoder, Layer, Norm, Part, Rope
from exporter.families._blocks import ACTIVATIONS, attention, gated_ffn, head, rms_norm


class GemmaConfig(HeadsConfig):
    """Keys that they spell alike."""

    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: Positive = 256
    use_bidirectional_attention: Literal[False] | None = None
    sliding_window: Size | None = 4096
    layer_types: list[LayerType] | None = None


def gemma_decoder(
    family: str,
    config: GemmaConfig,
    ropes: Sequence[Rope],
    windows: Sequence[int | None],
    *,
    qk_norm: bool = False,
    softcap: float | None = None,
    logit_softcap: float | None = None,
) -> Decoder:
    """A whole model.

    Args:
        ropes, windows: of each layer.
        qk_norm: RMSNorm over each head of q and k.
        softcap, logit_softcap: of scores and of logits; None for none.
    """
    hidden = config.hidden_size
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, hidden))

    def norm(name: str, channels: int = hidden) -> Norm:
        return rms_norm(name, channels, config.rms_norm_eps, plus=1.0)

    def layer(at: str, rope: Rope, window: int | None) -> Layer:
        return Layer(
            attention=attention(
                f"{at}.self_attn",
                config,
                scale=config.query_pre_attn_scalar**-0.5,
                rope=rope,
                window=window,
                qkv_bias=config.attention_bias,
                o_bias=config.attention_bias,
                softcap=softcap or 0.0,
                qk_norm=norm if qk_norm else None,
            ),
            ffn=gated_ffn(
                f"{at}.mlp", hidden, config.intermediate_size, ACTIVATIONS[config.hidden_activation]
            ),
            attention_norm=norm(f"{at}.input_layernorm"),
            attention_post_norm=norm(f"{at}.post_attention_layernorm"),
            ffn_norm=norm(f"{at}.pre_feedforward_layernorm"),
            ffn_post_norm=norm(f"{at}.post_feedforward_layernorm"),
        )

    return Decoder(
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        embedding_scale=math.sqrt(hidden),
        layers=tuple(
            layer(f"model.layers.{i}", rope, window)
            for i, (rope, window) in enumerate(zip(ropes, windows, strict=True))
        ),
        norm=norm("model.norm"),
        head=head(embedding, tied=config.tie_word_embeddings),
        logit_softcap=logit_softcap or 0.0,
    )
