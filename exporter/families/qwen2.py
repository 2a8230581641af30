"""Qwen 2 and 2.5 (Yang et al. 2024): Llama's layers with biases on q, k and v, the upper ones windowed."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import LayerType, Size, windows_of
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers

ARCHITECTURES = ("Qwen2ForCausalLM",)


class Config(GatedConfig):
    absent: ClassVar = {"use_mrope": (False,)}

    max_position_embeddings: Size = 32_768
    num_key_value_heads: Size | None = 32
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28
    layer_types: list[LayerType] | None = None

    def windows(self) -> list[int | None]:
        """Of each layer: the first ``max_window_layers`` see everything."""
        window = self.sliding_window if self.use_sliding_window else None
        default: list[LayerType] = [
            "sliding_attention" if window is not None and i >= self.max_window_layers else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        return windows_of(self.layer_types, default, window)


def describe(config: Config) -> Decoder:
    return gated_decoder("qwen2", config, gated_layers(config, windows=config.windows(), qkv_bias=True))
