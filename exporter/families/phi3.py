"""Phi-3 (Abdin et al. 2024): Llama's layers with q, k, v in one tensor and gate, up in another."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Epsilon, Share, Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer
from exporter.families._blocks import GatedConfig, gated_decoder, linear, rms_norm, slices
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
    hidden, inner, epsilon = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    heads, kv_heads, size = config.num_attention_heads, config.kv_heads, config.head_size
    rope = rope_of(config, partial=config.partial_rotary_factor)

    def layer(at: str) -> Layer:
        kv_size = kv_heads * size
        q, k, v = slices(f"{at}.self_attn.qkv_proj", hidden, heads * size, kv_size, kv_size)
        gate, up = slices(f"{at}.mlp.gate_up_proj", hidden, inner, inner)
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
            ffn=FeedForward(
                gate=gate,
                up=up,
                down=linear(f"{at}.mlp.down_proj", hidden, inner),
                activation=config.hidden_act,
            ),
            attention_norm=rms_norm(f"{at}.input_layernorm", hidden, epsilon),
            ffn_norm=rms_norm(f"{at}.post_attention_layernorm", hidden, epsilon),
        )

    return gated_decoder(
        "phi3", config, [layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)]
    )
