"""IQuest-Coder V1 (IQuest Lab 2026): Llama's layers, which transformers runs and saves as Llama's."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("IQuestCoderForCausalLM", "LlamaForCausalLM")


class Config(GatedConfig):
    absent: ClassVar = {"clip_qkv": (None,), "use_sliding_window": (False,)}

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131_072
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias)
    return gated_decoder("iquestcoder", config, layers)
