"""StarCoder and SantaCoder (Li et al. 2023, Ben Allal et al. 2023): GPT-2 whose heads share one head of k and v.

q, k and v are one tensor: one after the other where heads share k and v, else by head.
"""

from __future__ import annotations

from typing import ClassVar, Self

import pydantic

from exporter.config import Size
from exporter.decoder import Attention, Decoder, FeedForward, Layer
from exporter.families import _gpt
from exporter.families._blocks import ACTIVATIONS, Ungated, layer_norm, linear
from exporter.families._gpt import GptConfig, gpt_decoder
from exporter.families._rows import slices, thirds

ARCHITECTURES = ("GPTBigCodeForCausalLM",)
IGNORED = _gpt.IGNORED


class Config(GptConfig):
    absent: ClassVar = {  # how the first version of the class ran, and how it rounded in float16
        "attention_softmax_in_fp32": (True, False),
        "inference_runner": (0,),
        "max_batch_size": (None,),
        "pad_key_length": (True, False),
        "pre_allocate_kv_cache": (True, False),
        "scale_attention_softmax_in_fp32": (True, False),
        "validate_runner_input": (True, False),
    }

    n_positions: Size = 1024
    activation_function: Ungated = "gelu_pytorch_tanh"
    multi_query: bool = True
    num_key_value_heads: Size | None = None
    scale_attn_weights: bool = True

    @property
    def kv_heads(self) -> int:
        return 1 if self.multi_query else self.n_head

    @pydantic.model_validator(mode="after")
    def _said_twice(self) -> Self:
        if self.num_key_value_heads not in (None, self.kv_heads):
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, and multi_query asks for {self.kv_heads}"
            )
        return self


def describe(config: Config) -> Decoder:
    hidden, heads, size, inner = config.n_embd, config.n_head, config.head_size, config.inner

    def layer(at: str) -> Layer:
        packed = linear(f"{at}.attn.c_attn", hidden + 2 * config.kv_heads * size, hidden, bias=True)
        q, k, v = slices(packed, hidden, size, size) if config.multi_query else thirds(packed, heads)
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=config.kv_heads,
                head_dim=size,
                q=q,
                k=k,
                v=v,
                o=linear(f"{at}.attn.c_proj", hidden, hidden, bias=True),
                scale=size**-0.5 if config.scale_attn_weights else 1.0,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.mlp.c_fc", inner, hidden, bias=True),
                down=linear(f"{at}.mlp.c_proj", hidden, inner, bias=True),
                activation=ACTIVATIONS[config.activation_function],
            ),
            attention_norm=layer_norm(f"{at}.ln_1", hidden, config.layer_norm_epsilon),
            ffn_norm=layer_norm(f"{at}.ln_2", hidden, config.layer_norm_epsilon),
        )

    return gpt_decoder("gpt_bigcode", config, [layer(f"transformer.h.{i}") for i in range(config.n_layer)])
