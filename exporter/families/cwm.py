"""Code World Model (Meta FAIR 2025): Llama's layers, three of four with a window."""

from __future__ import annotations

from exporter.config import Epsilon, LayerType, Size, windows_of
from exporter.decoder import Decoder
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.rope import rope_of

ARCHITECTURES = ("CwmForCausalLM",)
PERIOD = 4
"""Every fourth layer sees everything, the first one too, where the configuration does not say."""
THETA = 1_000_000.0
"""Base of the frequencies where the configuration names none."""
ROPE = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Rotary positions where the configuration has none."""


class Config(GatedConfig):
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131_072
    rms_norm_eps: Epsilon = 1e-5
    mlp_bias: bool = False
    sliding_window: Size | None = 8192
    layer_types: list[LayerType] | None = None

    def windows(self) -> list[int | None]:
        """Of each layer."""
        in_turn: list[LayerType] = [
            "sliding_attention" if i % PERIOD else "full_attention" for i in range(self.num_hidden_layers)
        ]
        return windows_of(self.layer_types, in_turn, self.sliding_window)


def describe(config: Config) -> Decoder:
    layers = gated_layers(
        config,
        windows=config.windows(),
        ropes=[rope_of(config, theta=THETA, default=ROPE)] * config.num_hidden_layers,
        ffn_bias=config.mlp_bias,
    )
    return gated_decoder("cwm", config, layers)
