"""StarCoder2 (Lozhkov et al. 2024): LayerNorm, biases everywhere, grouped heads in a window, no gate."""

from __future__ import annotations

from typing import ClassVar

from exporter.config import Epsilon, HeadsConfig, Size
from exporter.decoder import Decoder, FeedForward, Layer, Part
from exporter.families._blocks import ACTIVATIONS, Ungated, attention, head, layer_norm, linear
from exporter.rope import rope_of

ARCHITECTURES = ("Starcoder2ForCausalLM",)


class Config(HeadsConfig):
    absent: ClassVar = {  # written with the first checkpoints, and read by nobody
        "attention_softmax_in_fp32": (True,),
        "layer_norm_epsilon": (1e-5,),
        "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
        "scale_attention_softmax_in_fp32": (True,),
        "scale_attn_weights": (True,),
    }

    num_key_value_heads: Size | None = 2
    max_position_embeddings: Size = 4096
    hidden_act: Ungated = "gelu_pytorch_tanh"
    norm_epsilon: Epsilon = 1e-5
    use_bias: bool = True
    sliding_window: Size | None = None
    tie_word_embeddings: bool = True


def describe(config: Config) -> Decoder:
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.use_bias
    rope = rope_of(config)
    embedding = Part("model.embed_tokens.weight", (config.vocab_size, hidden))

    def layer(at: str) -> Layer:
        return Layer(
            attention=attention(
                f"{at}.self_attn",
                config,
                scale=config.head_size**-0.5,
                rope=rope,
                window=config.sliding_window,
                qkv_bias=bias,
                o_bias=bias,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.c_fc", inner, hidden, bias=bias),
                down=linear(f"{at}.mlp.c_proj", hidden, inner, bias=bias),
                activation=ACTIVATIONS[config.hidden_act],
            ),
            attention_norm=layer_norm(f"{at}.input_layernorm", hidden, config.norm_epsilon),
            ffn_norm=layer_norm(f"{at}.post_attention_layernorm", hidden, config.norm_epsilon),
        )

    return Decoder(
        family="starcoder2",
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        context_length=config.max_position_embeddings,
        embedding=embedding,
        layers=tuple(layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)),
        norm=layer_norm("model.norm", hidden, config.norm_epsilon),
        head=head(embedding, tied=config.tie_word_embeddings),
    )
