"""HunYuan's dense models, 0.5B to 7B (Tencent Hunyuan Team 2025): Llama with norms over each head of q and k, which are
rotated before."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

import numpy as np
import pydantic

from exporter.config import Epsilon, Size
from exporter.decoder import Decoder, Rope
from exporter.families._blocks import GatedConfig, gated_decoder, gated_layers
from exporter.rope import positive, rope, rope_of, stated_parameters

ARCHITECTURES = ("HunYuanDenseV1ForCausalLM",)
UNREAD = frozenset(["beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim", "rope_type", "type"])
"""Keys of a rotary scaling that say nothing where there is an alpha."""


class Config(GatedConfig):
    absent: ClassVar = {
        "add_classification_head": (False,),
        "mlp_bias": (False,),
        "norm_type": ("rms",),
        "use_cla": (False,),
        "use_qk_norm": (True,),
        "use_rotary_pos_emb": (True,),
    }

    head_dim: Size  # transformers runs none without it
    max_position_embeddings: Size = 2048
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False
    eod_token_id: int | None = 3  # of training
    cla_share_factor: Size | None = None  # of layers that share keys and values, which use_cla turns on
    attention_head_dim: Size | None = None

    @pydantic.model_validator(mode="after")
    def _one_head_dim(self) -> Self:
        if self.attention_head_dim not in (None, self.head_dim):
            raise ValueError(f"attention_head_dim is {self.attention_head_dim}, head_dim {self.head_dim}")
        return self


def describe(config: Config) -> Decoder:
    bias, size = config.attention_bias, config.head_size
    ropes = [_rope(config)] * config.num_hidden_layers
    layers = [
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(
                layer.attention,
                q_norm=config.norm(f"model.layers.{i}.self_attn.query_layernorm", size),
                k_norm=config.norm(f"model.layers.{i}.self_attn.key_layernorm", size),
                rotates_first=True,
            ),
        )
        for i, layer in enumerate(gated_layers(config, ropes=ropes, qkv_bias=bias, o_bias=bias))
    ]
    return gated_decoder("hunyuan_v1_dense", config, layers)


def _rope(config: Config) -> Rope:
    """What is called dynamic and has an ``alpha`` is neither: a larger base (NTK-aware scaling, bloc97 2023)."""
    parameters = stated_parameters(config)
    alpha = parameters.pop("alpha", None)
    if (parameters.get("rope_type") or parameters.get("type")) != "dynamic" or not alpha:
        return rope_of(config)
    size = config.head_size
    power = size / (size - 2) if size > 2 else math.inf
    with np.errstate(over="ignore"):  # what is no number then is refused as a base
        stretched = float(np.float64(positive("alpha", alpha)) ** power)
    theta = positive("rope_theta", parameters.pop("rope_theta")) * stretched
    rest = {key: value for key, value in parameters.items() if key not in UNREAD}
    return rope(rest, theta, size, config.max_position_embeddings)
