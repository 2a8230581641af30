"""Mistral 7B (Jiang et al. 2023): Llama's layers, each token seeing a window of the last tokens."""

from __future__ import annotations

from exporter.config import Size
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("MistralForCausalLM",)


class Config(GatedConfig):
    max_position_embeddings: Size = 131_072
    num_key_value_heads: Size | None = 8
    sliding_window: Size | None = 4096


def describe(config: Config) -> Decoder:
    windows = [config.sliding_window] * config.num_hidden_layers
    return gated_decoder("mistral", config, gated_layers(config, windows=windows))
