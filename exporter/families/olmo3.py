"""OLMo 3 (OLMo Team 2025): OLMo 2 with a window on three layers of four; rotary scaling is of the fourth alone."""

from __future__ import annotations

from typing import Self

import pydantic

from exporter.config import LayerType, Positive, Size, windows_of
from exporter.decoder import Decoder
from exporter.families import olmo2
from exporter.rope import ropes_by_type

ARCHITECTURES = ("Olmo3ForCausalLM",)
PERIOD = 4
"""Every fourth layer sees everything where the configuration does not say."""
THETA = 500_000.0
"""Base of the frequencies where ``rope_parameters`` name none."""


class Config(olmo2.Config):
    sliding_window: Size | None = 4096
    layer_types: list[LayerType] | None = None
    rope_theta: Positive | None = None

    @pydantic.model_validator(mode="after")
    def _one_theta(self) -> Self:
        """transformers 4 had another base in all layers, transformers 5 has it where everything is seen."""
        if self.rope_theta not in (None, THETA):
            raise ValueError(
                f"rope_theta {self.rope_theta} outside rope_parameters means one thing here and one there"
            )
        return self

    def types_by_period(self) -> list[LayerType]:
        """Of each layer, where ``layer_types`` is left out."""
        return [
            "sliding_attention" if (i + 1) % PERIOD else "full_attention"
            for i in range(self.num_hidden_layers)
        ]


def describe(config: Config) -> Decoder:
    by_period = config.types_by_period()
    ropes = ropes_by_type(config, {"full_attention": THETA, "sliding_attention": THETA})
    return olmo2.normed_behind(
        "olmo3",
        config,
        windows_of(config.layer_types, by_period, config.sliding_window),
        [ropes[kind] for kind in config.layer_types or by_period],
    )
