"""OLMo 1 (Groeneveld et al. 2024): Llama's layers with LayerNorms that have learned nothing.

Queries, keys and values that are clipped (``clip_qkv``, OLMo 1.7 7B) are refused by name.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from exporter.config import Size
from exporter.decoder import Decoder, Norm
from exporter.families._blocks import BlocksConfig, gated_decoder, gated_layers

ARCHITECTURES = ("OlmoForCausalLM",)
EPSILON = 1e-5
"""Of all norms. No key says it."""


class Config(BlocksConfig):
    absent: ClassVar = {"clip_qkv": (None,)}

    max_position_embeddings: Size = 2048
    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False

    def norm(self, name: str, channels: int) -> Norm:
        return Norm("layer", None, EPSILON)


def describe(config: Config) -> Decoder:
    bias = config.attention_bias
    return gated_decoder("olmo", config, gated_layers(config, qkv_bias=bias, o_bias=bias))
