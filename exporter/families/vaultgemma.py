"""VaultGemma (Google 2025): Gemma 2, trained with differential privacy, without norms behind its blocks."""

from __future__ import annotations

import dataclasses

from exporter.decoder import Decoder
from exporter.families import gemma2

ARCHITECTURES = ("VaultGemmaForCausalLM",)


class Config(gemma2.Config):
    pass


def describe(config: Config) -> Decoder:
    decoder = gemma2.describe(config)
    layers = [
        dataclasses.replace(layer, attention_post_norm=None, ffn_post_norm=None) for layer in decoder.layers
    ]
    return dataclasses.replace(decoder, family="vaultgemma", layers=tuple(layers))
