"""Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024), and what shares their shape: SmolLM2, TinyLlama."""

from __future__ import annotations

from typing import Any, Literal

from exporter.config import FamilyConfig
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Norm, Part
from exporter.rope import rope_of

ARCHITECTURES = ("LlamaForCausalLM",)
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


class Config(FamilyConfig):
    absent = {"is_llama_config": (True,), "rope_interleaved": (False,)}

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False


def describe(config: Config) -> Decoder:
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv_heads = config.num_key_value_heads or heads
    head_dim = config.head_dim or hidden // heads
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, hidden))
    rope = rope_of(config, head_dim)

    def linear(name: str, out: int, into: int, bias: bool) -> Linear:
        return Linear(Part(f"{name}.weight", (out, into)), Part(f"{name}.bias", (out,)) if bias else None)

    def norm(name: str) -> Norm:
        return Norm("rms", Part(f"{name}.weight", (hidden,)), config.rms_norm_eps)

    def layer(at: str) -> Layer:
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                q=linear(f"{at}.self_attn.q_proj", heads * head_dim, hidden, config.attention_bias),
                k=linear(f"{at}.self_attn.k_proj", kv_heads * head_dim, hidden, config.attention_bias),
                v=linear(f"{at}.self_attn.v_proj", kv_heads * head_dim, hidden, config.attention_bias),
                o=linear(f"{at}.self_attn.o_proj", hidden, heads * head_dim, config.attention_bias),
                scale=head_dim**-0.5,
                rope=rope,
            ),
            ffn=FeedForward(
                gate=linear(f"{at}.mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias),
                up=linear(f"{at}.mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias),
                down=linear(f"{at}.mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias),
                activation=config.hidden_act,
            ),
            attention_norm=norm(f"{at}.input_layernorm"),
            ffn_norm=norm(f"{at}.post_attention_layernorm"),
        )

    return Decoder(
        family="llama",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=norm("model.norm"),
        head=Linear(
            embedding if config.tie_word_embeddings else Part("lm_head.weight", (config.vocab_size, hidden))
        ),
    )
