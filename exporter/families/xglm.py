"""XGLM (Lin et al. 2021): BioGPT's layers, sines and cosines in the place of learned positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Self

import pydantic

from exporter.config import FamilyConfig, Layers, Size
from exporter.decoder import Decoder, Sinusoids
from exporter.families._blocks import ACTIVATIONS, Ungated
from exporter.families._fairseq import OFFSET, fairseq_decoder

ARCHITECTURES = ("XGLMForCausalLM",)
IGNORED = (r"model\.embed_positions\.weights",)
"""The table of sines, which old versions of transformers saved."""


class Config(FamilyConfig):
    vocab_size: Size
    d_model: Size
    ffn_dim: Size
    num_layers: Layers
    attention_heads: Size
    max_position_embeddings: Size = 2048
    activation_function: Ungated = "gelu"
    scale_embedding: bool = True
    pad_token_id: Literal[0, 1] | None = (
        1  # the row of this number is zeros, and from 2 on it would be a token's
    )
    tie_word_embeddings: bool = True

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        return self.num_layers

    @property
    def num_attention_heads(self) -> int:
        return self.attention_heads

    @pydantic.model_validator(mode="after")
    def _channels_fit(self) -> Self:
        if self.d_model % self.attention_heads:
            raise ValueError(f"d_model {self.d_model} does not split into {self.attention_heads} heads")
        if self.d_model % 2 or self.d_model < 4:
            raise ValueError(f"d_model {self.d_model} does not split into sines and cosines")
        return self


def describe(config: Config) -> Decoder:
    decoder = fairseq_decoder(
        "xglm",
        config,
        inner=config.ffn_dim,
        activation=ACTIVATIONS[config.activation_function],
        at="model",
        norm="layer_norm",
        head_name="lm_head",
    )
    scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
    return dataclasses.replace(decoder, positions=Sinusoids(OFFSET), embedding_scale=scale)
