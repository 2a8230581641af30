"""Phi-3 (Abdin et al. 2024): Llama's layers with q, k, v in one tensor and gate, up in another."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Epsilon, Share, Size
from exporter.decoder import Attention, Decoder, Layer, Rope
from exporter.errors import unsupported
from exporter.families._blocks import GatedConfig, gated_decoder, linear, packed_ffn
from exporter.families._rows import slices
from exporter.rope import rope_of

ARCHITECTURES = ("Phi3ForCausalLM",)


class Config(GatedConfig):
    absent: ClassVar = {
        "attention_bias": (False,),
        "full_attn_mod": (1,),
        "interpolate_factor": (1,),
        "lm_head_bias": (False,),
        "mlp_bias": (False,),
    }

    max_position_embeddings: Size = 4096
    original_max_position_embeddings: Size = 4096  # read by longrope alone, which is refused by name
    rms_norm_eps: Epsilon = 1e-5
    partial_rotary_factor: Share = 1.0
    sliding_window: Size | None = None


def describe(config: Config) -> Decoder:
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads, size = config.num_attention_heads, config.kv_heads, config.head_size
    rope = _rope(config)

    def layer(at: str) -> Layer:
        kv_size = kv_heads * size
        packed = linear(f"{at}.self_attn.qkv_proj", heads * size + 2 * kv_size, hidden)
        q, k, v = slices(packed, heads * size, kv_size, kv_size)
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=size,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.self_attn.o_proj", hidden, heads * size),
                scale=size**-0.5,
                rope=rope,
                window=config.sliding_window,
            ),
            ffn=packed_ffn(f"{at}.mlp", hidden, inner, config.activation),
            attention_norm=config.norm(f"{at}.input_layernorm", hidden),
            ffn_norm=config.norm(f"{at}.post_attention_layernorm", hidden),
        )

    return gated_decoder(
        "phi3", config, [layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)]
    )


def _rope(config: Config) -> Rope:
    parameters = (config.rope_scaling or {}) | (config.rope_parameters or {})
    if "yarn" in (parameters.get("rope_type"), parameters.get("type")):
        raise unsupported(
            "rope-unknown",
            "rotary scaling of type 'yarn' is an older name of longrope in Phi-3, and not implemented",
            "use a Phi-3 for short contexts",
        )
    return rope_of(config, partial=config.partial_rotary_factor)
