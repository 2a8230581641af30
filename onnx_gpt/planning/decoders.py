"""Decoders of random weights that a device is timed on, and what is timed of them.

The weights of the wide one and of the deep one are more than caches hold; the thin one has hardly any, which leaves
what layers and attention take. The deep one is as far from the others as models are, so that what a fit misses says
something. Steps are timed after two contexts; prompts of whole pieces, since a shorter one has too few tokens for
reading weights not to matter. Medians count, as in `onnx-gpt bench`: the least of many steps is a third quicker than
what a user sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint
from exporter.families import describe
from exporter.weights import Weight
from onnx_gpt.generation.decoder_session import PIECE
from onnx_gpt.planning.work import Work

CONTEXTS = (64, 512)
"""Tokens before the steps."""
LENGTHS = (PIECE, 3 * PIECE)
"""Tokens of the prompts."""
STEPS, PROMPTS = 24, 4
"""Runs of a step and of a prompt, of which the median counts."""

COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 1024,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "wide": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
    "deep": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 16,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 8192,
    },
    "thin": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
"""76, 61 and 1 million weights."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One decoder, timed.

    Attributes:
        work: what it costs.
        step, prompt: seconds of a step after so many tokens, and of a prompt of so many.
        memory: bytes of a process that did all that, at its peak; None where nobody can tell.
    """

    work: Work
    step: Mapping[int, float]
    prompt: Mapping[int, float]
    memory: int | None = None


class Tiled(Weight):
    """Random rows, over and over: of any size, at no cost."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self._shape = shape
        drawn = np.random.default_rng(seed).standard_normal((min(shape[0], 251), *shape[1:]))
        self._tile = (drawn / np.sqrt(shape[-1])).astype(np.float32) if len(shape) > 1 else np.ones(1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._tile[np.arange(start, stop) % len(self._tile)].astype(np.float32)


def decoders() -> Iterator[tuple[str, Checkpoint]]:
    """A checkpoint of random weights for each of `SHAPES`."""
    for shape, sizes in SHAPES.items():
        empty = Checkpoint(f"measure:{shape}", {**COMMON, **sizes}, {})
        parts = dict(describe(empty).parts()).values()
        weights = {part.name: Tiled(part.stored_shape, seed) for seed, part in enumerate(parts)}
        yield shape, dataclasses.replace(empty, weights=weights)
