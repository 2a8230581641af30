"""EXAONE 4 (LG AI Research 2025): Llama with norms behind the blocks, none before, and norms over each head of q and k.

Where there are windows, layers that see everything have no positions.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Epsilon, LayerType, Size, invalid, windows_of
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.rope import rope_of

ARCHITECTURES = ("Exaone4ForCausalLM",)


class Config(GatedConfig):
    max_position_embeddings: Size = 2048
    num_key_value_heads: Size | None = 32
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = 4096
    sliding_window_pattern: int | str | None = 4
    layer_types: list[LayerType] | None = None

    def windows(self) -> list[int | None]:
        """Of each layer. ``sliding_window_pattern`` is read where ``layer_types`` is not there, and a number then."""
        pattern = self.sliding_window_pattern
        period = pattern if isinstance(pattern, int) else 0
        if self.layer_types is None and period < 1:
            raise invalid(
                "config.json does not say which layers have a window",
                f"layer_types is not there, and sliding_window_pattern is {pattern!r:.200}",
            )
        in_turn: list[LayerType] = [
            "sliding_attention" if period and (i + 1) % period else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        return windows_of(self.layer_types, in_turn, self.sliding_window)


def describe(config: Config) -> Decoder:
    hidden, windows, rope = config.hidden_size, config.windows(), rope_of(config)
    hybrid = config.sliding_window is not None
    ropes = [None if hybrid and window is None else rope for window in windows]
    layers = [
        dataclasses.replace(
            layer,
            attention_norm=None,
            attention_post_norm=config.norm(f"model.layers.{i}.post_attention_layernorm", hidden),
            ffn_norm=None,
            ffn_post_norm=config.norm(f"model.layers.{i}.post_feedforward_layernorm", hidden),
        )
        for i, layer in enumerate(gated_layers(config, windows=windows, ropes=ropes, qk_norm=True))
    ]
    return gated_decoder("exaone4", config, layers)
