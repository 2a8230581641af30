"""StableLM 3B and StableLM 2 (Bellagente et al. 2024): Llama's layers with LayerNorm, a share of each head rotating.

Norms over each head of q and k (StableLM 2 12B) are refused by name.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from exporter.config import Epsilon, Share, Size
from exporter.decoder import Decoder, Norm
from exporter.families._blocks import BlocksConfig, gated_decoder, gated_layers, layer_norm
from exporter.rope import rope_of

ARCHITECTURES = ("StableLmForCausalLM",)


class Config(BlocksConfig):
    absent: ClassVar = {"qk_layernorm": (False,)}

    max_position_embeddings: Size = 4096
    num_key_value_heads: Size | None = 32
    head_dim: None = None
    hidden_act: Literal["silu"] = "silu"
    layer_norm_eps: Epsilon = 1e-5
    partial_rotary_factor: Share = 0.25
    use_qkv_bias: bool = False
    use_parallel_residual: bool = False

    def norm(self, name: str, channels: int) -> Norm:
        return layer_norm(name, channels, self.layer_norm_eps)


def describe(config: Config) -> Decoder:
    rope = rope_of(config, partial=config.partial_rotary_factor)
    layers = gated_layers(
        config,
        ropes=[rope] * config.num_hidden_layers,
        qkv_bias=config.use_qkv_bias,
        parallel=config.use_parallel_residual,
    )
    return gated_decoder("stablelm", config, layers)
