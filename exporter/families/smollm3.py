"""SmolLM 3 (Bakouch et al. 2025): Llama's layers, every fourth without positions (NoPE, Yang et al. 2025)."""

from __future__ import annotations

from typing import ClassVar, Literal

from exporter.config import Layers, LayerType, Size, invalid, windows_of
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.rope import rope_of

ARCHITECTURES = ("SmolLM3ForCausalLM",)


class Config(GatedConfig):
    absent: ClassVar = {"max_window_layers": (28,)}  # written, and read by nobody

    max_position_embeddings: Size = 32_768
    num_key_value_heads: Size | None = 4
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    no_rope_layers: list[Literal[0, 1]] | None = None
    no_rope_layer_interval: Layers = 4
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    layer_types: list[LayerType] | None = None

    def rotates(self) -> list[bool]:
        """Of each layer; the key ``no_rope_layers`` says 1 where it does."""
        if self.no_rope_layers is None:
            return [(i + 1) % self.no_rope_layer_interval != 0 for i in range(self.num_hidden_layers)]
        if len(self.no_rope_layers) != self.num_hidden_layers:
            raise invalid(
                "config.json contradicts itself",
                f"no_rope_layers has {len(self.no_rope_layers)} entries for {self.num_hidden_layers} layers",
            )
        return [bool(rotates) for rotates in self.no_rope_layers]

    def windows(self) -> list[int | None]:
        """Of each layer: where windows are on, layers without positions have one."""
        window = self.sliding_window if self.use_sliding_window else None
        default: list[LayerType] = [
            "full_attention" if window is None or rotates else "sliding_attention"
            for rotates in self.rotates()
        ]
        if window is None:
            return [None] * self.num_hidden_layers
        return windows_of(self.layer_types, default, window)


def describe(config: Config) -> Decoder:
    bias, rope = config.attention_bias, rope_of(config)
    layers = gated_layers(
        config,
        windows=config.windows(),
        ropes=[rope if rotates else None for rotates in config.rotates()],
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=config.mlp_bias,
    )
    return gated_decoder("smollm3", config, layers)
