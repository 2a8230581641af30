"""nanochat (Karpathy 2025): Llama's layers with relu² in the place of a gate, and norms that learn nothing, one of them
behind the embedding.

It turns q and k the other way, and normalises them afterwards. A norm without a gain does not see a rotation, so here
it comes first, as in other families.
"""

from __future__ import annotations

import dataclasses

from exporter.config import Epsilon, Positive, Size
from exporter.decoder import Activation, Decoder, Layer, Norm, Rope
from exporter.families._blocks import ACTIVATIONS, BlocksConfig, Ungated, gated_decoder, gated_layers, linear
from exporter.rope import rope_of

ARCHITECTURES = ("NanoChatForCausalLM",)


class Config(BlocksConfig):
    max_position_embeddings: Size = 2048
    hidden_act: Ungated = "relu2"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    final_logit_softcapping: Positive | None = 15.0

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.hidden_act]

    def norm(self, name: str, channels: int) -> Norm:
        return Norm("rms", None, self.rms_norm_eps)


def describe(config: Config) -> Decoder:
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    rope = rope_of(config)
    backwards = Rope(tuple(-frequency for frequency in rope.frequencies))
    of_head = Norm("rms", None, config.rms_norm_eps / rope.factor**2)  # behind it, the factor would be gone

    def nanochat(at: str, layer: Layer) -> Layer:
        return dataclasses.replace(
            layer,
            attention=dataclasses.replace(layer.attention, q_norm=of_head, k_norm=of_head),
            ffn=dataclasses.replace(
                layer.ffn,
                up=linear(f"{at}.mlp.fc1", inner, hidden),
                down=linear(f"{at}.mlp.fc2", hidden, inner),
            ),
        )

    ropes = [backwards] * config.num_hidden_layers
    layers = gated_layers(config, ropes=ropes, qkv_bias=bias, o_bias=bias, gated=False)
    decoder = gated_decoder(
        "nanochat", config, [nanochat(f"model.layers.{i}", layer) for i, layer in enumerate(layers)]
    )
    return dataclasses.replace(
        decoder,
        embedding_norm=config.norm("", hidden),
        logit_softcap=config.final_logit_softcapping or 0.0,
    )
