"""``config.json`` out of a GGUF file's metadata, one function an architecture.

Each asks for the keys that it honours; what is left over is refused by name (`exporter.gguf_format.keys`).
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from exporter.gguf_format.keys import Keys
from exporter.gguf_format.rotary import rope_keys

Config: TypeAlias = dict[str, Any]


def llama(keys: Keys) -> Config:
    return _rotated_config(keys) | {
        "attention_bias": _has_bias(keys, "attn_q"),
        "mlp_bias": _has_bias(keys, "ffn_up"),
    }


def qwen2(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    if head_dim * config["num_attention_heads"] != config["hidden_size"]:
        raise keys.unsupported([f"qwen2.attention.key_length = {head_dim}"])
    return config | {"hidden_act": "silu", **rope_keys(keys, _rotated(keys, head_dim))}


def qwen3(keys: Keys) -> Config:
    return _rotated_config(keys) | {"attention_bias": False}


def phi3(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    window = keys.integer("attention.sliding_window", 0)
    return config | {
        "hidden_act": "silu",
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        "sliding_window": window or None,
        **_rotated_in_part(keys, head_dim),
    }


def gemma(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": head_dim,
        "attention_bias": False,
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def gemma3(keys: Keys) -> Config:
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


def granite(keys: Keys) -> Config:
    """llama.cpp takes a multiplier of 0 for none, and then scales scores by the size of a head."""
    config = llama(keys)
    scale = keys.number("attention.scale", 0.0)
    return config | {
        "embedding_multiplier": keys.number("embedding_scale", 0.0) or 1.0,
        "attention_multiplier": scale or config["head_dim"] ** -0.5,
        "residual_multiplier": keys.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": keys.number("logit_scale"),
    }


def olmo2(keys: Keys) -> Config:
    return _rotated_config(keys) | {"attention_bias": _has_bias(keys, "attn_q")}


def olmo(keys: Keys) -> Config:
    """The file has a key for what is a constant in Hugging Face's OLMo."""
    config = _sizes(keys)
    head_dim, epsilon = _head_dim(keys, config), keys.number("attention.layer_norm_epsilon")
    if epsilon != 1e-5:
        raise keys.unsupported([f"olmo.attention.layer_norm_epsilon = {epsilon}"])
    return config | {
        "hidden_act": "silu",
        "head_dim": head_dim,
        "attention_bias": False,
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def nemotron(keys: Keys) -> Config:
    config = _sizes(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "relu2",
        "head_dim": head_dim,
        "norm_eps": keys.number("attention.layer_norm_epsilon"),
        "attention_bias": _has_bias(keys, "attn_q"),
        "mlp_bias": _has_bias(keys, "ffn_up"),
        **_rotated_in_part(keys, head_dim),
    }


def glm4(keys: Keys) -> Config:
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "silu",
        "head_dim": head_dim,
        "attention_bias": _has_bias(keys, "attn_q"),
        **_rotated_in_part(keys, head_dim),
    }


def exaone4(keys: Keys) -> Config:
    """Those with windows have keys for them, and are refused."""
    config = _rotated_config(keys)
    return config | {
        "sliding_window": None,
        "layer_types": ["full_attention"] * config["num_hidden_layers"],
    }


def jais2(keys: Keys) -> Config:
    config = _sizes(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "relu2",
        "head_dim": head_dim,
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "attention_bias": _has_bias(keys, "attn_q"),
        "mlp_bias": _has_bias(keys, "ffn_up"),
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def starcoder2(keys: Keys) -> Config:
    config = _sizes(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": head_dim,
        "norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "sliding_window": keys.integer("attention.sliding_window", 0) or None,
        "use_bias": _has_bias(keys, "attn_q"),
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def stablelm(keys: Keys) -> Config:
    """Converters write ``use_parallel_residual`` whatever the model does; llama.cpp goes by the second norm."""
    config = _sizes(keys)
    head_dim = _head_dim(keys, config)
    keys.inert("use_parallel_residual")
    return config | {
        "hidden_act": "silu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in keys.header.tensors,
        "use_qkv_bias": _has_bias(keys, "attn_q"),
        **_rotated_in_part(keys, head_dim),
    }


def phi2(keys: Keys) -> Config:
    config = _sizes(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "gelu_new",
        "head_dim": head_dim,
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        **_rotated_in_part(keys, head_dim),
    }


def gpt2(keys: Keys) -> Config:
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


def starcoder(keys: Keys) -> Config:
    keys.only("attention.head_count_kv", 1)
    return gpt2(keys) | {"activation_function": "gelu_pytorch_tanh", "multi_query": True}


def gptneox(keys: Keys) -> Config:
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


def _has_bias(keys: Keys, weight: str) -> bool:
    """Whether a linear map of the first layer, by the file's name, has one."""
    return f"blk.0.{weight}.bias" in keys.header.tensors


def _rotated_in_part(keys: Keys, head_dim: int) -> Config:
    """Rotary positions of the first channels of each head, and what share of them these are."""
    rotated = keys.size("rope.dimension_count", head_dim)
    return {"partial_rotary_factor": share(rotated, head_dim), **rope_keys(keys, rotated)}


def _gated_config(keys: Keys) -> Config:
    """What all decoders with a gated feed-forward and RMSNorm say alike."""
    return _sizes(keys) | {"rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")}


def _rotated_config(keys: Keys) -> Config:
    """The same with a SiLU and heads that rotate whole."""
    config = _gated_config(keys)
    head_dim = _head_dim(keys, config)
    return config | {
        "hidden_act": "silu",
        "head_dim": head_dim,
        **rope_keys(keys, _rotated(keys, head_dim)),
    }


def _sizes(keys: Keys) -> Config:
    heads = keys.size("attention.head_count")
    return {
        "num_hidden_layers": _layers(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
    }


def _layers(keys: Keys) -> int:
    """As many as the file has tensors for."""
    layers = keys.size("block_count")
    if f"blk.{layers - 1}.attn_output.weight" not in keys.header.tensors:
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
