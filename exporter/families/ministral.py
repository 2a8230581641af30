"""Ministral (Mistral AI 2024): Mistral's layers, with a window in those that ``layer_types`` names."""

from __future__ import annotations

from exporter.config import LayerType, Size, windows_of
from exporter.decoder import Decoder
from exporter.families import mistral
from exporter.families._blocks import gated_decoder, gated_layers

ARCHITECTURES = ("MinistralForCausalLM",)


class Config(mistral.Config):
    head_dim: Size  # transformers runs none without it, and none without a window
    sliding_window: Size = 4096
    layer_types: list[LayerType] | None = None

    def windows(self) -> list[int | None]:
        """Of each layer: of all, where ``layer_types`` is not there."""
        every: list[LayerType] = ["sliding_attention"] * self.num_hidden_layers
        return windows_of(self.layer_types, every, self.sliding_window)


def describe(config: Config) -> Decoder:
    return gated_decoder("ministral", config, gated_layers(config, windows=config.windows()))
