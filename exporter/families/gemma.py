"""Gemma 1 (Gemma Team 2024): Llama's layers with GELU gates, norms that store γ and use 1 + γ, scaled embeddings."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

from exporter.config import Epsilon, Size
from exporter.decoder import Activation, Decoder, Norm
from exporter.families._blocks import BlocksConfig, gated_decoder, gated_layers, rms_norm

ARCHITECTURES = ("GemmaForCausalLM",)


class Config(BlocksConfig):
    absent: ClassVar = {
        "hidden_activation": (None, "gelu_pytorch_tanh"),
        "use_bidirectional_attention": (None, False),
    }

    max_position_embeddings: Size = 8192
    num_key_value_heads: Size | None = 16
    head_dim: Size | None = 256
    hidden_act: Literal["gelu", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @property
    def activation(self) -> Activation:
        """The approximation, though the first files call it ``gelu``."""
        return "gelu_tanh"

    def norm(self, name: str, channels: int) -> Norm:
        return rms_norm(name, channels, self.rms_norm_eps, plus=1.0)


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    decoder = gated_decoder("gemma", config, gated_layers(config, qkv_bias=bias, o_bias=bias))
    return dataclasses.replace(decoder, embedding_scale=math.sqrt(config.hidden_size))
