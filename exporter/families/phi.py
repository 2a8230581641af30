"""Phi 1, 1.5 and 2 (Li et al. 2023): attention and feed-forward side by side behind one norm, biases in the head, too.

A share of each head's channels rotates.
"""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Epsilon, HeadsConfig, Share, Size
from exporter.decoder import Decoder, FeedForward, Layer, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, attention, head, layer_norm, linear
from exporter.rope import rope_of

ARCHITECTURES = ("PhiForCausalLM",)


class Config(HeadsConfig):
    absent: ClassVar = {"qk_layernorm": (False,)}

    max_position_embeddings: Size = 2048
    hidden_act: Ungated = "gelu_new"
    layer_norm_eps: Epsilon = 1e-5
    partial_rotary_factor: Share = 0.5
    tie_word_embeddings: bool = False


def describe(config: Config) -> Decoder:
    hidden, inner, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_eps
    rope = rope_of(config, partial=config.partial_rotary_factor)
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        return Layer(
            attention=attention(
                f"{at}.self_attn",
                config,
                scale=config.head_size**-0.5,
                rope=rope,
                window=None,
                qkv_bias=True,
                o_bias=True,
                o="dense",
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.fc1", inner, hidden, bias=True),
                down=linear(f"{at}.mlp.fc2", hidden, inner, bias=True),
                activation=ACTIVATIONS[config.hidden_act],
            ),
            attention_norm=layer_norm(f"{at}.input_layernorm", hidden, epsilon),
            ffn_norm=None,
            parallel=True,
        )

    return Decoder(
        family="phi",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm("model.final_layernorm", hidden, epsilon),
        head=head(embedding, tied=config.tie_word_embeddings, bias=True),
    )
