"""InternLM 3 (Shanghai AI Laboratory 2025): Llama's layers, which transformers runs and saves as Llama's."""

from __future__ import annotations

from typing import ClassVar, Self

import pydantic

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("InternLM3ForCausalLM", "LlamaForCausalLM")


class Config(GatedConfig):
    spelled: ClassVar = {"bias": "mlp_bias", "qkv_bias": "attention_bias"}

    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Size = 32_768
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False

    @pydantic.model_validator(mode="after")
    def _all_biases_or_none(self) -> Self:
        """What one of them says of the output map of attention, the other said in the model's own code."""
        if self.attention_bias != self.mlp_bias:
            raise ValueError(
                f"qkv_bias (attention_bias) is {self.attention_bias}, bias (mlp_bias) {self.mlp_bias}: they are one"
            )
        return self


def describe(config: Config) -> Decoder:
    bias = config.mlp_bias
    layers = gated_layers(config, qkv_bias=bias, o_bias=bias, ffn_bias=bias)
    return gated_decoder("internlm3", config, layers)
