"""Helium 1 (Kyutai 2025): Llama's layers, rotary pairs kept together."""

from __future__ import annotations

from typing import Self

import pydantic

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.rope import rope_of

ARCHITECTURES = ("HeliumForCausalLM",)
THETA = 100_000.0
"""Base of the frequencies where the configuration names none."""


class Config(GatedConfig):
    num_key_value_heads: Size | None = 20
    head_dim: Size | None = 128
    max_position_embeddings: Size = 4096
    rms_norm_eps: Epsilon = 1e-8
    attention_bias: bool = False
    mlp_bias: bool = False

    @pydantic.model_validator(mode="after")
    def _output_is_square(self) -> Self:
        """The output map has as many inputs as outputs, whatever the heads are."""
        if self.num_attention_heads * self.head_size != self.hidden_size:
            raise ValueError(
                f"{self.num_attention_heads} heads of {self.head_size} channels (head_dim) are not hidden_size "
                f"{self.hidden_size}"
            )
        return self


def describe(config: Config) -> Decoder:
    layers = gated_layers(
        config,
        ropes=[rope_of(config, theta=THETA)] * config.num_hidden_layers,
        qkv_bias=config.attention_bias,
        ffn_bias=config.mlp_bias,
        pairs_together=True,
    )
    return gated_decoder("helium", config, layers)
