"""Ministral 3 (Mistral AI 2025), its text model alone: Mistral's layers, queries that grow with their place.

Queries of the tokens behind the context that the first stage of the training had are multiplied, as in Llama 4, and so
``context_length`` is that context: there they are as they are elsewhere.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families import mistral
from exporter.families._blocks import gated_decoder, gated_layers
from exporter.rope import positive, rope, stated_parameters

ARCHITECTURES = ("Ministral3ForCausalLM",)
BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    ORIGINAL: 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    BETA: 0.1,
}
"""Rotary positions where the configuration has none."""


class Config(mistral.Config):
    head_dim: Size | None = 128
    max_position_embeddings: Size = 262_144
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = None


def describe(config: Config) -> Decoder:
    parameters, context = stated_parameters(config, default=ROPE), config.max_position_embeddings
    theta, beta = parameters.pop("rope_theta"), parameters.pop(BETA, None)
    parameters.pop("max_position_embeddings", None)  # the configuration's own, once more
    rotation = rope(parameters, theta, config.head_size, context)
    if beta != 0:
        positive(BETA, beta)
        context = min(context, int(positive(ORIGINAL, parameters.get(ORIGINAL))))
    count = config.num_hidden_layers
    layers = gated_layers(config, windows=[config.sliding_window] * count, ropes=[rotation] * count)
    return dataclasses.replace(gated_decoder("ministral3", config, layers), context_length=context)
