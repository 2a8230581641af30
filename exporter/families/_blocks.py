"""Pieces that families share: how Hugging Face names the tensors of a linear map, a norm, a gated decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from exporter.config import Epsilon, HeadsConfig
from exporter.decoder import Activation, Attention, Decoder, FeedForward, Layer, Linear, Norm, Part, Rope
from exporter.families._rows import pairs_apart, slices
from exporter.rope import rope_of

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names of activations in feed-forwards without a gate. Three of them spell one function."""
Ungated = Literal["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2"]


class BlocksConfig(HeadsConfig):
    """Keys of a decoder of attention and gated feed-forwards, and what a family makes of them: `activation`, `norm`."""

    tie_word_embeddings: bool = False

    @property
    def activation(self) -> Activation:
        """Of the gates."""
        return "silu"

    def norm(self, name: str, channels: int) -> Norm:
        """A norm of so many channels, by the name of its tensors."""
        raise NotImplementedError


class GatedConfig(BlocksConfig):
    """Keys of a decoder shaped like Llama."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-6

    def norm(self, name: str, channels: int) -> Norm:
        return rms_norm(name, channels, self.rms_norm_eps)


class PlainConfig(BlocksConfig):
    """Keys of the same without gates."""

    hidden_act: Ungated = "relu2"
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.hidden_act]


def linear(name: str, out: int, into: int, *, bias: bool = False) -> Linear:
    return Linear(Part(f"{name}.weight", (out, into)), Part(f"{name}.bias", (out,)) if bias else None)


def head(embedding: Part, *, tied: bool, name: str = "lm_head", bias: bool = False) -> Linear:
    """Hidden states to logits, by the embedding's own table where they are tied."""
    weight = embedding if tied else Part(f"{name}.weight", embedding.shape)
    return Linear(weight, Part(f"{name}.bias", embedding.shape[:1]) if bias else None)


def rms_norm(name: str, size: int, epsilon: float, *, plus: float = 0.0) -> Norm:
    return Norm("rms", Part(f"{name}.weight", (size,), plus=plus), epsilon)


def layer_norm(name: str, size: int, epsilon: float, *, bias: bool = True, plus: float = 0.0) -> Norm:
    gain = Part(f"{name}.weight", (size,), plus=plus)
    return Norm("layer", gain, epsilon, Part(f"{name}.bias", (size,)) if bias else None)


def gated_ffn(at: str, hidden: int, inner: int, activation: Activation, *, bias: bool = False) -> FeedForward:
    return FeedForward(
        gate=linear(f"{at}.gate_proj", inner, hidden, bias=bias),
        up=linear(f"{at}.up_proj", inner, hidden, bias=bias),
        down=linear(f"{at}.down_proj", hidden, inner, bias=bias),
        activation=activation,
    )


def plain_ffn(at: str, hidden: int, inner: int, activation: Activation, *, bias: bool = False) -> FeedForward:
    """The same without a gate."""
    return dataclasses.replace(gated_ffn(at, hidden, inner, activation, bias=bias), gate=None)


def packed_ffn(at: str, hidden: int, inner: int, activation: Activation) -> FeedForward:
    """Gate and up in one tensor."""
    gate, up = slices(linear(f"{at}.gate_up_proj", 2 * inner, hidden), inner, inner)
    return FeedForward(gate=gate, up=up, down=linear(f"{at}.down_proj", hidden, inner), activation=activation)


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
    config: BlocksConfig,
    *,
    windows: Sequence[int | None] | None = None,
    ropes: Sequence[Rope | None] | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    ffn_bias: bool = False,
    gated: bool = True,
    qk_norm: bool = False,
    pairs_together: bool = False,
    parallel: bool = False,
) -> list[Layer]:
    """Layers shaped like Llama's: a norm before each block, rotary attention, a gated feed-forward.

    Args:
        windows: of each layer; None for full attention everywhere.
        ropes: of each layer, None for no positions; what `rope_of` says for all of them by default.
        gated: whether feed-forwards are.
        qk_norm: a norm over each head of q and k.
        pairs_together: whether rotary pairs lie as `pairs_apart` finds them.
        parallel: attention and feed-forward side by side behind one norm.
    """
    hidden, count = config.hidden_size, config.num_hidden_layers
    inner, feed_forward = config.intermediate_size, gated_ffn if gated else plain_ffn

    def layer(at: str, window: int | None, rope: Rope | None) -> Layer:
        attended = attention(
            f"{at}.self_attn",
            config,
            scale=config.head_size**-0.5,
            rope=rope,
            window=window,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            qk_norm=config.norm if qk_norm else None,
        )
        return Layer(
            attention=pairs_apart(attended) if pairs_together else attended,
            ffn=feed_forward(f"{at}.mlp", hidden, inner, config.activation, bias=ffn_bias),
            attention_norm=config.norm(f"{at}.input_layernorm", hidden),
            ffn_norm=None if parallel else config.norm(f"{at}.post_attention_layernorm", hidden),
            parallel=parallel,
        )

    windows, ropes = windows or [None] * count, ropes or [rope_of(config)] * count
    each = zip(windows, ropes, strict=True)
    return [layer(f"model.layers.{i}", window, rope) for i, (window, rope) in enumerate(each)]


def gated_decoder(family: str, config: BlocksConfig, layers: Sequence[Layer]) -> Decoder:
    """What stands around such layers: embedding, last norm, head."""
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    return Decoder(
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layers),
        norm=config.norm("model.norm", config.hidden_size),
        head=head(embedding, tied=config.tie_word_embeddings),
    )


def renamed(decoder: Decoder, names: Mapping[str, str]) -> Decoder:
    """The same with other names of its tensors.

    Args:
        names: what stands in a name, and what stands there then.
    """

    def change(node: Any) -> Any:
        if isinstance(node, tuple):
            return tuple(map(change, node))
        if isinstance(node, Part):
            name = node.name
            for one, other in names.items():
                name = name.replace(one, other)
            return dataclasses.replace(node, name=name)
        if not dataclasses.is_dataclass(node) or isinstance(node, type):
            return node
        fields = {field.name: change(getattr(node, field.name)) for field in dataclasses.fields(node)}
        return dataclasses.replace(node, **fields)

    changed: Decoder = change(decoder)
    return changed


def scaled_logits(decoder: Decoder, times: float) -> Decoder:
    """The same with logits multiplied, in the last norm's gain."""
    return dataclasses.replace(decoder, norm=gain_times(decoder.norm, times))


def gain_times(norm: Norm, times: float) -> Norm:
    """A norm without bias, what it gives multiplied."""
    assert norm.weight is not None and norm.bias is None
    return dataclasses.replace(norm, weight=dataclasses.replace(norm.weight, times=times))
