"""EXAONE 3 and 3.5 (LG AI Research 2024): Llama's layers under names of their own."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers, renamed
from exporter.rope import rope_of

ARCHITECTURES = ("ExaoneForCausalLM", "LlamaForCausalLM")
THETA = 500_000.0
"""Base of the frequencies where the configuration names none."""
NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.layers": "transformer.h",
    "model.norm": "transformer.ln_f",
    "self_attn": "attn.attention",
    "o_proj": "out_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "gate_proj": "c_fc_0",
    "up_proj": "c_fc_1",
    "down_proj": "c_proj",
}
"""Of Llama's tensors. transformers reads these names, runs Llama, and saves these again."""


class Config(GatedConfig):
    spelled: ClassVar = {
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "rms_norm_eps",
        "num_layers": "num_hidden_layers",
    }

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 4096
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False


def describe(config: Config) -> Decoder:
    bias, ropes = config.attention_bias, [rope_of(config, theta=THETA)] * config.num_hidden_layers
    layers = gated_layers(config, ropes=ropes, qkv_bias=bias, o_bias=bias, ffn_bias=config.mlp_bias)
    return renamed(gated_decoder("exaone", config, layers), NAMES)
