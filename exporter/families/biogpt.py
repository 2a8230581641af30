"""BioGPT (Luo et al. 2022): OPT's layers and its two rows before the first position, with scaled embeddings."""

from __future__ import annotations

import dataclasses
import math

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder
from exporter.families._blocks import ACTIVATIONS, Ungated
from exporter.families._fairseq import FairseqConfig, fairseq_decoder

ARCHITECTURES = ("BioGptForCausalLM",)


class Config(FairseqConfig):
    intermediate_size: Size
    max_position_embeddings: Size = 1024
    hidden_act: Ungated = "gelu"
    layer_norm_eps: Epsilon = 1e-12  # written, and read by nobody
    scale_embedding: bool = True


def describe(config: Config) -> Decoder:
    decoder = fairseq_decoder(
        "biogpt",
        config,
        inner=config.intermediate_size,
        activation=ACTIVATIONS[config.hidden_act],
        at="biogpt",
        norm="layer_norm",
        head_name="output_projection",
    )
    scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
    return dataclasses.replace(decoder, embedding_scale=scale)
