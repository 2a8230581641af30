"""Pieces that families share: how Hugging Face names the tensors of a linear map, a norm, a gated decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from exporter.config import Epsilon, HeadsConfig
from exporter.decoder import Activation, Attention, Decoder, FeedForward, Layer, Linear, Norm, Part, Rope
from exporter.rope import rope_of

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""transformers' names of activations in feed-forwards without a gate. Three of them spell one function."""
Ungated = Literal["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu"]


class GatedConfig(HeadsConfig):
    """Keys of a decoder shaped like Llama."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False


def linear(name: str, out: int, into: int, *, bias: bool = False) -> Linear:
    return Linear(Part(f"{name}.weight", (out, into)), Part(f"{name}.bias", (out,)) if bias else None)


def slices(name: str, into: int, *sizes: int) -> list[Linear]:
    """Linear maps that are stored one under the other as one tensor, with ``sizes`` rows each."""
    total, at, parts = sum(sizes), 0, []
    for size in sizes:
        rows = ((at, at + size),)
        parts.append(Linear(Part(f"{name}.weight", (size, into), stored=(total, into), rows=rows)))
        at += size
    return parts


def head(embedding: Part, *, tied: bool, name: str = "lm_head", bias: bool = False) -> Linear:
    """Hidden states to logits, by the embedding's own table where they are tied."""
    weight = embedding if tied else Part(f"{name}.weight", embedding.shape)
    return Linear(weight, Part(f"{name}.bias", embedding.shape[:1]) if bias else None)


def rms_norm(name: str, size: int, epsilon: float, *, plus: float = 0.0) -> Norm:
    return Norm("rms", Part(f"{name}.weight", (size,), plus=plus), epsilon)


def layer_norm(name: str, size: int, epsilon: float) -> Norm:
    return Norm("layer", Part(f"{name}.weight", (size,)), epsilon, Part(f"{name}.bias", (size,)))


def gated_ffn(at: str, hidden: int, inner: int, activation: Activation, *, bias: bool = False) -> FeedForward:
    return FeedForward(
        gate=linear(f"{at}.gate_proj", inner, hidden, bias=bias),
        up=linear(f"{at}.up_proj", inner, hidden, bias=bias),
        down=linear(f"{at}.down_proj", hidden, inner, bias=bias),
        activation=activation,
    )


def attention(
    at: str,
    config: HeadsConfig,
    *,
    scale: float,
    rope: Rope | None,
    window: int | None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    softcap: float = 0.0,
    qk_norm: Callable[[str, int], Norm] | None = None,
    o: str = "o_proj",
) -> Attention:
    """Attention out of ``q_proj``, ``k_proj``, ``v_proj`` and an output map.

    Args:
        qk_norm: makes the norms over each head of q and k, from a tensor's name and the channels of a head.
        o: what the output map is called.
    """
    hidden, size = config.hidden_size, config.head_size
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        q=linear(f"{at}.q_proj", heads * size, hidden, bias=qkv_bias),
        k=linear(f"{at}.k_proj", kv_heads * size, hidden, bias=qkv_bias),
        v=linear(f"{at}.v_proj", kv_heads * size, hidden, bias=qkv_bias),
        o=linear(f"{at}.{o}", hidden, heads * size, bias=o_bias),
        scale=scale,
        rope=rope,
        window=window,
        softcap=softcap,
        q_norm=qk_norm(f"{at}.q_norm", size) if qk_norm else None,
        k_norm=qk_norm(f"{at}.k_norm", size) if qk_norm else None,
    )


def gated_layers(
    config: GatedConfig,
    *,
    windows: Sequence[int | None] | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    ffn_bias: bool = False,
    qk_norm: bool = False,
) -> list[Layer]:
    """Layers shaped like Llama's: RMSNorm before each block, rotary attention, a gated feed-forward.

    Args:
        windows: of each layer; None for full attention everywhere.
        qk_norm: RMSNorm over each head of q and k.
    """
    hidden, rope = config.hidden_size, rope_of(config)

    def norm(name: str, channels: int = hidden) -> Norm:
        return rms_norm(name, channels, config.rms_norm_eps)

    def layer(at: str, window: int | None) -> Layer:
        return Layer(
            attention=attention(
                f"{at}.self_attn",
                config,
                scale=config.head_size**-0.5,
                rope=rope,
                window=window,
                qkv_bias=qkv_bias,
                o_bias=o_bias,
                qk_norm=norm if qk_norm else None,
            ),
            ffn=gated_ffn(f"{at}.mlp", hidden, config.intermediate_size, config.hidden_act, bias=ffn_bias),
            attention_norm=norm(f"{at}.input_layernorm"),
            ffn_norm=norm(f"{at}.post_attention_layernorm"),
        )

    windows = windows or [None] * config.num_hidden_layers
    return [layer(f"model.layers.{i}", window) for i, window in enumerate(windows)]


def gated_decoder(family: str, config: GatedConfig, layers: Sequence[Layer]) -> Decoder:
    """What stands around such layers: embedding, last norm, head."""
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    return Decoder(
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layers),
        norm=rms_norm("model.norm", config.hidden_size, config.rms_norm_eps),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
