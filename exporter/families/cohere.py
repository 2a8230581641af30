"""Command R and Aya 23 (Cohere 2024): attention and gated feed-forward side by side behind one LayerNorm without bias,
rotary pairs kept together, logits scaled.

Logits are scaled in the last norm's gain. Norms over each head of q and k (Command R+) are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from exporter.config import Epsilon, Positive, Size
from exporter.decoder import Decoder, Norm, Rope
from exporter.families._blocks import BlocksConfig, gated_decoder, gated_layers, layer_norm, scaled_logits
from exporter.rope import rope_of

ARCHITECTURES = ("CohereForCausalLM",)
THETA = 500_000.0
"""Base of the frequencies where the configuration names none."""


class Config(BlocksConfig):
    absent: ClassVar = {"use_qk_norm": (None, False)}

    max_position_embeddings: Size = 8192
    model_max_length: Size | None = None  # written once, and read by nobody
    hidden_act: Literal["silu"] = "silu"
    layer_norm_eps: Epsilon = 1e-5
    logit_scale: Positive = 0.0625
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    def norm(self, name: str, channels: int) -> Norm:
        return layer_norm(name, channels, self.layer_norm_eps, bias=False)


def describe(config: Config) -> Decoder:
    count = config.num_hidden_layers
    return scaled_decoder("cohere", config, [None] * count, [rope_of(config, theta=THETA)] * count)


def scaled_decoder(
    family: str, config: Config, windows: Sequence[int | None], ropes: Sequence[Rope | None]
) -> Decoder:
    """A model of such layers.

    Args:
        windows, ropes: of each layer.
    """
    bias = config.attention_bias
    layers = gated_layers(
        config, windows=windows, ropes=ropes, qkv_bias=bias, o_bias=bias, pairs_together=True, parallel=True
    )
    return scaled_logits(gated_decoder(family, config, layers), config.logit_scale)
