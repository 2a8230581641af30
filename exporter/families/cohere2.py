"""Command R7B and Command A (Cohere 2024): Cohere's layers, three in a window, and each fourth without positions."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Layers, LayerType, Size, windows_of
from exporter.decoder import Decoder
from exporter.families import cohere
from exporter.rope import rope_of

ARCHITECTURES = ("Cohere2ForCausalLM",)


class Config(cohere.Config):
    absent: ClassVar = {  # written with the first checkpoints, and read by nobody
        "layer_switch": (4,),
        "order_of_interleaved_layers": ("local_attn_first",),
        "position_embedding_type": ("rope_gptj",),
        "rotary_pct": (1.0,),
        "use_embedding_sharing": (True,),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_parallel_embedding": (False,),
    }

    sliding_window: Size | None = 4096
    sliding_window_pattern: Layers = 4
    layer_types: list[LayerType] | None = None

    def windows(self) -> list[int | None]:
        """Of each layer; those without one have no positions either."""
        in_turn: list[LayerType] = [
            "sliding_attention" if (i + 1) % self.sliding_window_pattern else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        return windows_of(self.layer_types, in_turn, self.sliding_window)


def describe(config: Config) -> Decoder:
    windows, rope = config.windows(), rope_of(config)
    ropes = [None if window is None else rope for window in windows]
    return cohere.scaled_decoder("cohere2", config, windows, ropes)
