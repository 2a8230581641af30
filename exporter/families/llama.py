"""Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024), and their like: SmolLM2, TinyLlama."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("LlamaForCausalLM",)
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


class Config(GatedConfig):
    absent: ClassVar = {"is_llama_config": (True,), "rope_interleaved": (False,), "use_mrope": (False,)}

    max_position_embeddings: Size = 2048
    attention_bias: bool = False
    mlp_bias: bool = False


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias)
    return gated_decoder("llama", config, layers)
