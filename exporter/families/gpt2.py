"""GPT-2 (Radford et al. 2019) and nanoGPT: learned positions, LayerNorm, biases everywhere.

Linear maps are stored ``[in, out]`` (Conv1D), those of q, k and v as one tensor.
"""

from __future__ import annotations

from exporter.config import Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Part
from exporter.families import _gpt
from exporter.families._blocks import ACTIVATIONS, layer_norm
from exporter.families._gpt import GptConfig, gpt_decoder
from exporter.families._rows import slices

ARCHITECTURES = ("GPT2LMHeadModel",)
IGNORED = _gpt.IGNORED


class Config(GptConfig):
    n_positions: Size = 1024
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False  # an order of float16 operations; in float32 the same function


def describe(config: Config) -> Decoder:
    hidden, heads, size, inner = config.n_embd, config.n_head, config.head_size, config.inner

    def conv(name: str, out: int, into: int) -> Linear:
        return Linear(Part(f"{name}.weight", (out, into), transposed=True), Part(f"{name}.bias", (out,)))

    def scale(i: int) -> float:
        scale = size**-0.5 if config.scale_attn_weights else 1.0
        return scale / (i + 1) if config.scale_attn_by_inverse_layer_idx else scale

    def layer(i: int) -> Layer:
        at = f"transformer.h.{i}"
        q, k, v = slices(conv(f"{at}.attn.c_attn", 3 * hidden, hidden), hidden, hidden, hidden)
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=size,
                q=q,
                k=k,
                v=v,
                o=conv(f"{at}.attn.c_proj", hidden, hidden),
                scale=scale(i),
            ),
            ffn=FeedForward(
                up=conv(f"{at}.mlp.c_fc", inner, hidden),
                down=conv(f"{at}.mlp.c_proj", hidden, inner),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.ln_1", hidden, config.layer_norm_epsilon),
            ffn_norm=layer_norm(f"{at}.ln_2", hidden, config.layer_norm_epsilon),
        )

    return gpt_decoder("gpt2", config, [layer(i) for i in range(config.n_layer)])
