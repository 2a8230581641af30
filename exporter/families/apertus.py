"""Apertus (Swiss AI Initiative 2025): Llama's layers with xIELU in the place of a gate, and norms over each head of q
and k."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from exporter.config import Epsilon, Size
from exporter.decoder import Activation, Decoder, Layer, Norm, Part, Xielu
from exporter.families._blocks import BlocksConfig, gated_decoder, gated_layers, rms_norm
from exporter.rope import rope_of

ARCHITECTURES = ("ApertusForCausalLM",)
CONSTANTS = {"beta": 0.5, "eps": -1e-6}
"""xIELU's own in every file. Exponentials of what is above the second are not taken, lest they overflow unread."""
THETA = 12_000_000.0
"""Base of the frequencies where the configuration names none."""
ROTARY = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
"""Where the configuration says nothing of rotary positions."""


class Config(BlocksConfig):
    absent: ClassVar = {"mlp_bias": (False,), "post_norm": (False,), "qk_norm": (True,)}

    max_position_embeddings: Size = 65_536
    hidden_act: Literal["xielu"] = "xielu"
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False

    @property
    def activation(self) -> Activation:
        return self.hidden_act

    def norm(self, name: str, channels: int) -> Norm:
        return rms_norm(name, channels, self.rms_norm_eps)


def describe(config: Config) -> Decoder:
    hidden, bias = config.hidden_size, config.attention_bias

    def apertus(at: str, layer: Layer) -> Layer:
        curve = Xielu(
            positive=Part(f"{at}.mlp.act_fn.alpha_p", (1,)),
            negative=Part(f"{at}.mlp.act_fn.alpha_n", (1,)),
            beta=CONSTANTS["beta"],
        )
        return dataclasses.replace(
            layer,
            ffn=dataclasses.replace(layer.ffn, xielu=curve),
            attention_norm=config.norm(f"{at}.attention_layernorm", hidden),
            ffn_norm=config.norm(f"{at}.feedforward_layernorm", hidden),
        )

    count = config.num_hidden_layers
    ropes = [rope_of(config, theta=THETA, default=ROTARY)] * count
    layers = gated_layers(config, ropes=ropes, qkv_bias=bias, o_bias=bias, gated=False, qk_norm=True)
    decoder = gated_decoder(
        "apertus", config, [apertus(f"model.layers.{i}", layer) for i, layer in enumerate(layers)]
    )
    named = [
        (f"model.layers.{i}.mlp.act_fn.{name}", value)
        for i in range(count)
        for name, value in CONSTANTS.items()
    ]
    return dataclasses.replace(decoder, constants=tuple(named))
