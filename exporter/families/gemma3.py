"""Gemma 3, text (Gemma Team 2025): local and global layers with a rotary base each, norms around all blocks.

Norms store γ and use 1 + γ. Embeddings are multiplied by √E; transformers rounds that factor to the dtype it
runs in, so in float32 it is √E itself, whatever the checkpoint was stored as.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import pydantic

from exporter.config import Epsilon, HeadsConfig, LayerType, Positive, Size, invalid, windows_of
from exporter.decoder import Attention, Decoder, Layer, Linear, Norm, Part, Rope
from exporter.families._blocks import ACTIVATIONS, gated_ffn, linear, rms_norm
from exporter.rope import rope

ARCHITECTURES = ("Gemma3ForCausalLM",)
PERIOD = 6
"""Every sixth layer is global where the configuration does not say."""


class Config(HeadsConfig):
    max_position_embeddings: Size = 131_072
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: Positive = 256
    final_logit_softcapping: Positive | None = None
    # transformers reads the next key and never applies it, so that no model could be equal to one that did
    attn_logit_softcapping: None = None
    use_bidirectional_attention: Literal[False] | None = False
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size | None = None
    saved_pattern: Size = pydantic.Field(default=PERIOD, alias="_sliding_window_pattern")
    layer_types: list[LayerType] | None = None
    rope_theta: Positive | None = 1_000_000.0
    rope_local_base_freq: Positive | None = 10_000.0

    @pydantic.model_validator(mode="after")
    def _saved_pattern_is_not_alone(self) -> Self:
        if self.layer_types is None and self.saved_pattern != (self.sliding_window_pattern or PERIOD):
            raise ValueError("_sliding_window_pattern is written beside layer_types and means nothing alone")
        return self

    def types_by_period(self) -> list[LayerType]:
        """Of each layer, where ``layer_types`` is left out: ``sliding_attention`` is local."""
        period = self.sliding_window_pattern or PERIOD
        return [
            "sliding_attention" if (i + 1) % period else "full_attention"
            for i in range(self.num_hidden_layers)
        ]

    def ropes(self) -> Mapping[LayerType, Rope]:
        """By layer type. transformers 4's ``rope_scaling`` and ``rope_theta`` are the global layers'."""
        nested = self.rope_parameters or {}
        types = ("full_attention", "sliding_attention")
        wrong = [key for key, of in nested.items() if key not in types or not isinstance(of, dict | None)]
        if wrong:
            raise invalid("rope_parameters are by layer type", *(f"rope_parameters.{key}" for key in wrong))
        parameters: dict[LayerType, dict[str, Any]] = {
            "full_attention": {"rope_theta": self.rope_theta}
            | (self.rope_scaling or {})
            | (nested.get("full_attention") or {}),
            "sliding_attention": {"rope_theta": self.rope_local_base_freq}
            | (nested.get("sliding_attention") or {}),
        }
        return {kind: self._rope(of) for kind, of in parameters.items()}

    def _rope(self, parameters: dict[str, Any]) -> Rope:
        theta = parameters.pop("rope_theta")
        return rope(parameters, theta, self.head_size, self.max_position_embeddings)


def describe(config: Config) -> Decoder:
    hidden, size = config.hidden_size, config.head_size
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    by_period, ropes = config.types_by_period(), config.ropes()
    windows = windows_of(config.layer_types, by_period, config.sliding_window)
    types = config.layer_types or by_period
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, hidden))

    def norm(name: str, channels: int = hidden) -> Norm:
        return rms_norm(name, channels, config.rms_norm_eps, plus=1.0)

    def layer(at: str, kind: LayerType, window: int | None) -> Layer:
        attn, bias = f"{at}.self_attn", config.attention_bias
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=size,
                q=linear(f"{attn}.q_proj", heads * size, hidden, bias=bias),
                k=linear(f"{attn}.k_proj", kv_heads * size, hidden, bias=bias),
                v=linear(f"{attn}.v_proj", kv_heads * size, hidden, bias=bias),
                o=linear(f"{attn}.o_proj", hidden, heads * size, bias=bias),
                scale=config.query_pre_attn_scalar**-0.5,
                rope=ropes[kind],
                window=window,
                q_norm=norm(f"{attn}.q_norm", size),
                k_norm=norm(f"{attn}.k_norm", size),
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
        family="gemma3",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        embedding_scale=math.sqrt(hidden),
        layers=tuple(
            layer(f"model.layers.{i}", kind, window)
            for i, (kind, window) in enumerate(zip(types, windows, strict=True))
        ),
        norm=norm("model.norm"),
        head=Linear(
            embedding if config.tie_word_embeddings else Part("lm_head.weight", (config.vocab_size, hidden))
        ),
        logit_softcap=config.final_logit_softcapping or 0.0,
    )
