"""OPT (Zhang et al. 2022): GPT-2's layers with ReLU, projections stored apart, and two rows before the first position.

The 350M model alone normalises after its blocks and has embeddings narrower than its hidden states; either is refused
by name.
"""

from __future__ import annotations

from typing import ClassVar, Self

import pydantic

from exporter.config import Size
from exporter.decoder import Decoder
from exporter.families._blocks import ACTIVATIONS, Ungated
from exporter.families._fairseq import FairseqConfig, fairseq_decoder

ARCHITECTURES = ("OPTForCausalLM",)


class Config(FairseqConfig):
    absent: ClassVar = {
        "_remove_final_layer_norm": (False,),
        "do_layer_norm_before": (True,),
        "layer_norm_elementwise_affine": (True,),
    }

    ffn_dim: Size
    max_position_embeddings: Size = 2048
    word_embed_proj_dim: Size | None = None
    activation_function: Ungated = "relu"
    enable_bias: bool = True

    @pydantic.model_validator(mode="after")
    def _embeddings_fit(self) -> Self:
        if self.word_embed_proj_dim not in (None, self.hidden_size):
            raise ValueError(
                f"word_embed_proj_dim {self.word_embed_proj_dim} is not hidden_size {self.hidden_size}: embeddings "
                "that are projected are not implemented"
            )
        return self


def describe(config: Config) -> Decoder:
    return fairseq_decoder(
        "opt",
        config,
        inner=config.ffn_dim,
        activation=ACTIVATIONS[config.activation_function],
        at="model.decoder",
        norm="final_layer_norm",
        head_name="lm_head",
        bias=config.enable_bias,
    )
