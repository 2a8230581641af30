"""Gemma 2 (Gemma Team 2024): local and global layers in turn, norms around all blocks, scores and logits capped."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import LayerType, Positive, Size, windows_of
from exporter.decoder import Decoder
from exporter.families._gemma import GemmaConfig, gemma_decoder
from exporter.rope import rope_of

ARCHITECTURES = ("Gemma2ForCausalLM",)


class Config(GemmaConfig):
    absent: ClassVar = {"hidden_act": ("gelu_pytorch_tanh",)}  # the older name of hidden_activation

    max_position_embeddings: Size = 8192
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0

    def windows(self) -> list[int | None]:
        """Of each layer: every second one is local, the first among them."""
        in_turn: list[LayerType] = [
            "full_attention" if i % 2 else "sliding_attention" for i in range(self.num_hidden_layers)
        ]
        return windows_of(self.layer_types, in_turn, self.sliding_window)


def describe(config: Config) -> Decoder:
    return gemma_decoder(
        "gemma2",
        config,
        [rope_of(config)] * config.num_hidden_layers,
        config.windows(),
        softcap=config.attn_logit_softcapping,
        logit_softcap=config.final_logit_softcapping,
    )
