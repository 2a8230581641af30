"""Gemma 3, text (Gemma Team 2025): Gemma 2 with a rotary base for local and one for global layers, and norms over the
heads of q and k in the place of capped scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import pydantic

from exporter.config import LayerType, Positive, Size, windows_of
from exporter.decoder import Decoder, Rope
from exporter.families._gemma import GemmaConfig, gemma_decoder
from exporter.rope import ropes_by_type

ARCHITECTURES = ("Gemma3ForCausalLM",)
PERIOD = 6
"""Every sixth layer is global where the configuration does not say."""


class Config(GemmaConfig):
    max_position_embeddings: Size = 131_072
    final_logit_softcapping: Positive | None = None
    # transformers reads the next key and never applies it, so that no model could be equal to one that did
    attn_logit_softcapping: None = None
    use_bidirectional_attention: Literal[False] | None = False
    sliding_window_pattern: Size | None = None
    saved_pattern: Size = pydantic.Field(default=PERIOD, alias="_sliding_window_pattern")
    rope_theta: Positive | None = 1_000_000.0
    rope_local_base_freq: Positive | None = 10_000.0

    @pydantic.model_validator(mode="after")
    def _saved_pattern_is_not_alone(self) -> Self:
        if self.layer_types is None and self.saved_pattern != (self.sliding_window_pattern or PERIOD):
            raise ValueError("_sliding_window_pattern is written beside layer_types and means nothing alone")
        return self

    def types_by_period(self) -> list[LayerType]:
        """Of each layer, where ``layer_types`` is left out: ``sliding_attention`` is local."""
        period = self.sliding_window_pattern or PERIOD
        return [
            "sliding_attention" if (i + 1) % period else "full_attention"
            for i in range(self.num_hidden_layers)
        ]

    def ropes(self) -> Mapping[LayerType, Rope]:
        """By layer type; transformers 4's ``rope_theta`` is the global layers'."""
        thetas: dict[LayerType, float | None] = {
            "full_attention": self.rope_theta,
            "sliding_attention": self.rope_local_base_freq,
        }
        return ropes_by_type(self, thetas)


def describe(config: Config) -> Decoder:
    by_period, ropes = config.types_by_period(), config.ropes()
    return gemma_decoder(
        "gemma3",
        config,
        [ropes[kind] for kind in config.layer_types or by_period],
        windows_of(config.layer_types, by_period, config.sliding_window),
        qk_norm=True,
        logit_softcap=config.final_logit_softcapping,
    )
