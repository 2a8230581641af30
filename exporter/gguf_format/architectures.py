"""llama.cpp's architectures, one entry each: the Hugging Face class, its configuration, its tensors.

Tensor names are not listed twice: an entry names its Hugging Face tensors, and the gguf library's table,
which the converters use, says what each of them is called in the file. What a converter does to values
(llama.cpp's ``convert_hf_to_gguf.py``) is undone by the entry's `undo`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from exporter.gguf_format.keys import Keys
from exporter.gguf_format.rotary import rope_keys
from exporter.weights import Permuted, Weight, plus, transposed

Config: TypeAlias = dict[str, Any]
Undo: TypeAlias = Callable[[Weight, Mapping[str, Any]], Weight]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        class_name: Hugging Face class, for ``architectures``.
        model_type: for ``config.json``.
        tensors: Hugging Face tensor names without ``.weight`` or ``.bias``, ``{}`` for the layer.
        config: gives the keys of ``config.json`` that are the architecture's own.
        undo: what gives a tensor's Hugging Face value, by name as in `tensors`.
    """

    class_name: str
    model_type: str
    tensors: tuple[str, ...]
    config: Callable[[Keys], Config]
    undo: Mapping[str, Undo] = dataclasses.field(default_factory=dict)


def _llama_config(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "silu",
        "head_dim": head_dim,
        "attention_bias": "blk.0.attn_q.bias" in keys.header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in keys.header.tensors,
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def _qwen2_config(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    if head_dim * config["num_attention_heads"] != config["hidden_size"]:
        raise keys.unsupported([f"qwen2.attention.key_length = {head_dim}"])
    return config | {"hidden_act": "silu", **rope_keys(keys, _rotated(keys, head_dim))}


def _qwen3_config(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "silu",
        "head_dim": head_dim,
        "attention_bias": False,
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def _phi3_config(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    rotated = keys.size("rope.dimension_count", head_dim)
    window = keys.integer("attention.sliding_window", 0)
    return config | {
        "hidden_act": "silu",
        "partial_rotary_factor": share(rotated, head_dim),
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        "sliding_window": window or None,
        **rope_keys(keys, rotated),
    }


def _gemma3_config(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    pattern = keys.size("attention.sliding_window_pattern", 6)
    local = keys.number("rope.freq_base_swa", 10000.0)
    cap = keys.number("final_logit_softcapping", 0.0)
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": head_dim,
        # llama.cpp knows the 27B model, which alone scales by hidden/heads, by its number of layers
        "query_pre_attn_scalar": config["hidden_size"] // heads if layers == 62 else head_dim,
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)
        ],
        "rope_local_base_freq": local,
        "attention_bias": False,
        "final_logit_softcapping": cap or None,
        "attn_logit_softcapping": None,
        **rope_keys(keys, _rotated(keys, head_dim), 1e6),
    }


def _gpt2_config(keys: Keys) -> Config:
    hidden = keys.size("embedding_length")
    return {
        "n_layer": _layers(keys),
        "n_positions": keys.integer("context_length"),
        "n_embd": hidden,
        "n_head": keys.size("attention.head_count"),
        "n_inner": keys.integer("feed_forward_length", 4 * hidden),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gptneox_config(keys: Keys) -> Config:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim = hidden // heads
    keys.only("attention.key_length", head_dim)
    keys.only("attention.value_length", head_dim)
    rotated = keys.size("rope.dimension_count", head_dim)
    rope = rope_keys(keys, rotated)
    return {
        "num_hidden_layers": _layers(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": keys.integer("feed_forward_length"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": keys.flag("use_parallel_residual", True),
        "hidden_act": "gelu",
        "attention_bias": True,
        "rotary_pct": share(rotated, head_dim),
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
    }


def _gated_config(keys: Keys) -> Config:
    """What all decoders with a gated feed-forward and RMSNorm say alike."""
    heads = keys.size("attention.head_count")
    return {
        "num_hidden_layers": _layers(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
    }


def _layers(keys: Keys) -> int:
    """As many as the file has tensors for."""
    layers = keys.size("block_count")
    if f"blk.{layers - 1}.attn_norm.weight" not in keys.header.tensors:
        raise keys.header.invalid(f"block_count is {layers}, and there are no tensors of block {layers - 1}")
    return layers


def _head_dim(keys: Keys, config: Config) -> int:
    head_dim = keys.integer("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    keys.only("attention.value_length", head_dim)
    if head_dim < 2 or head_dim % 2:
        raise keys.header.invalid(f"heads of {head_dim} channels cannot be rotated")
    return head_dim


def _rotated(keys: Keys, head_dim: int) -> int:
    keys.only("rope.dimension_count", head_dim)
    return head_dim


def share(rotated: int, head_dim: int) -> float:
    """A number whose product with ``head_dim``, cut to a whole one as readers cut it, is ``rotated``."""
    part = rotated / max(head_dim, 1)
    return part if int(head_dim * part) == rotated else math.nextafter(part, math.inf)


def _halves(weight: Weight, heads: int) -> Weight:
    """Rows of heads in Hugging Face's order, the halves of pairs apart; llama.cpp keeps pairs together."""
    return _reordered(weight, (heads, -1, 2), (0, 2, 1))


def _per_head(weight: Weight, heads: int) -> Weight:
    """GPT-NeoX's ``[head, q·k·v, channel]`` rows; llama.cpp keeps ``[q·k·v, head, channel]``."""
    return _reordered(weight, (3, heads, -1), (1, 0, 2))


def _reordered(weight: Weight, grid: tuple[int, ...], axes: tuple[int, ...]) -> Weight:
    """Rows laid out as a grid whose axes change places. What does not fit stays, and is found mis-shaped."""
    rows = weight.shape[0]
    if rows % math.prod(dim for dim in grid if dim > 0):
        return weight
    return Permuted(weight, np.arange(rows).reshape(grid).transpose(axes).reshape(-1))


def _transposed(weight: Weight, config: Mapping[str, Any]) -> Weight:
    return transposed(weight) if len(weight.shape) == 2 else weight


def _without_one(weight: Weight, config: Mapping[str, Any]) -> Weight:
    return plus(weight, -1.0)


_LAYER = "model.layers.{}"
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_NORMS = (f"{_LAYER}.input_layernorm", f"{_LAYER}.post_attention_layernorm")
_ATTENTION = tuple(f"{_LAYER}.self_attn.{name}_proj" for name in "qkvo")
_GATED = tuple(f"{_LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down"))
_HEAD_NORMS = tuple(f"{_LAYER}.self_attn.{name}_norm" for name in "qk")
_GEMMA_NORMS = (
    *_NORMS,
    f"{_LAYER}.pre_feedforward_layernorm",
    f"{_LAYER}.post_feedforward_layernorm",
    *_HEAD_NORMS,
    "model.norm",
)
_BLOCK = "transformer.h.{}"
_CONV1D = tuple(f"{_BLOCK}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
_NEOX = "gpt_neox.layers.{}"

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM",
        "llama",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED),
        _llama_config,
        {
            f"{_LAYER}.self_attn.q_proj": lambda w, config: _halves(w, config["num_attention_heads"]),
            f"{_LAYER}.self_attn.k_proj": lambda w, config: _halves(w, config["num_key_value_heads"]),
        },
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", "qwen2", (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED), _qwen2_config
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM", "qwen3", (*_OUTSIDE, *_NORMS, *_HEAD_NORMS, *_ATTENTION, *_GATED), _qwen3_config
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        (*_OUTSIDE, *_GEMMA_NORMS, *_ATTENTION, *_GATED),
        _gemma3_config,
        dict.fromkeys(_GEMMA_NORMS, _without_one),
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        "phi3",
        (
            *_OUTSIDE,
            *_NORMS,
            *(
                f"{_LAYER}.{name}"
                for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
            ),
        ),
        _phi3_config,
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        (
            "transformer.wte",
            "transformer.wpe",
            "transformer.ln_f",
            "lm_head",
            f"{_BLOCK}.ln_1",
            f"{_BLOCK}.ln_2",
            *_CONV1D,
        ),
        _gpt2_config,
        dict.fromkeys(_CONV1D, _transposed),
    ),
    "gptneox": Architecture(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        (
            "gpt_neox.embed_in",
            "gpt_neox.final_layer_norm",
            "embed_out",
            *(f"{_NEOX}.{name}" for name in ("input_layernorm", "post_attention_layernorm")),
            *(f"{_NEOX}.attention.{name}" for name in ("query_key_value", "dense")),
            *(f"{_NEOX}.mlp.{name}" for name in ("dense_h_to_4h", "dense_4h_to_h")),
        ),
        _gptneox_config,
        {
            f"{_NEOX}.attention.query_key_value": lambda w, config: _per_head(
                w, config["num_attention_heads"]
            ),
        },
    ),
}
