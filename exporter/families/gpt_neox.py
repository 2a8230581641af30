"""GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward side by side, both reading the same x.

A share of each head's channels rotates.
"""

from __future__ import annotations

from exporter.config import Share
from exporter.decoder import Decoder, Part
from exporter.families._blocks import head, layer_norm
from exporter.families._neox import RotaryNeoxConfig, neox_layer

ARCHITECTURES = ("GPTNeoXForCausalLM",)
IGNORED = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
"""Causal masks and rotary tables that old versions of transformers saved."""


class Config(RotaryNeoxConfig):
    rotary_pct: Share = 0.25
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False


def describe(config: Config) -> Decoder:
    embedding = Part("gpt_neox.embed_in.weight", (config.vocab_size, config.hidden_size))
    return Decoder(
        family="gpt_neox",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(
            neox_layer(
                f"gpt_neox.layers.{i}",
                config,
                config.rope,
                attention_bias=config.attention_bias,
                parallel=config.use_parallel_residual,
            )
            for i in range(config.num_hidden_layers)
        ),
        norm=layer_norm("gpt_neox.final_layer_norm", config.hidden_size, config.layer_norm_eps),
        head=head(embedding, tied=config.tie_word_embeddings, name="embed_out"),
    )
