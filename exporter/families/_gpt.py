"""What the GPTs that spell their sizes as GPT-2 does share: their keys, and what stands around their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pydantic

from exporter.config import Epsilon, FamilyConfig, Layers, Size
from exporter.decoder import Decoder, Layer, Part
from exporter.families._blocks import Ungated, head, layer_norm

IGNORED = (r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|causal_mask|masked_bias)",)
"""Causal masks that old versions of transformers saved."""


class GptConfig(FamilyConfig):
    """Keys that they spell alike."""

    vocab_size: Size
    n_positions: Size = 2048
    n_embd: Size
    n_layer: Layers
    n_head: Size
    n_inner: Size | None = None
    activation_function: Ungated = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: bool = True

    @property
    def head_size(self) -> int:
        """Channels of one head, D."""
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """Neurons of a feed-forward, F."""
        return self.n_inner or 4 * self.n_embd

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        return self


def gpt_decoder(
    family: str,
    config: GptConfig,
    layers: Sequence[Layer],
    *,
    positions: bool = True,
    head_bias: bool = False,
) -> Decoder:
    """A whole model.

    Args:
        positions: whether they are learned.
    """
    hidden, context = config.n_embd, config.n_positions
    embedding = Part("transformer.wte.weight", (config.vocab_size, hidden))
    return Decoder(
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=context,
        embedding=embedding,
        positions=Part("transformer.wpe.weight", (context, hidden)) if positions else None,
        layers=tuple(layers),
        norm=layer_norm("transformer.ln_f", hidden, config.layer_norm_epsilon),
        head=head(embedding, tied=config.tie_word_embeddings, bias=head_bias),
    )
