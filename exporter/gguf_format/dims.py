"""What the metadata of most architectures say alike: sizes, heads, rotary positions, windows, biases."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from exporter.gguf_format.keys import Keys
from exporter.gguf_format.rotary import rope_keys

Config: TypeAlias = dict[str, Any]


def sizes(keys: Keys) -> Config:
    heads = keys.size("attention.head_count")
    return {
        "num_hidden_layers": layers(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
    }


def layers(keys: Keys) -> int:
    """As many as the file has tensors for."""
    count = keys.size("block_count")
    if f"blk.{count - 1}.attn_output.weight" not in keys.header.tensors:
        raise keys.header.invalid(f"block_count is {count}, and there are no tensors of block {count - 1}")
    return count


def head_size(keys: Keys, config: Config) -> int:
    """Channels of a head."""
    size = keys.integer("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    keys.only("attention.value_length", size)
    if size < 2 or size % 2:
        raise keys.header.invalid(f"heads of {size} channels cannot be rotated")
    return size


def derived_head_size(keys: Keys, hidden: int, heads: int) -> int:
    """Channels of a head where Hugging Face's configuration has no key for them."""
    size = hidden // heads
    keys.only("attention.key_length", size)
    keys.only("attention.value_length", size)
    return size


def rotary(keys: Keys, size: int, theta: float | None = None) -> Config:
    """Rotary positions of all channels of each head.

    Args:
        size: of a head.
        theta: see `rope_keys`.
    """
    keys.only("rope.dimension_count", size)
    return rope_keys(keys, size, theta)


def rotary_in_part(keys: Keys, size: int) -> Config:
    """Rotary positions of the first channels of each head, and what share of them these are."""
    rotated = keys.size("rope.dimension_count", size)
    return {"partial_rotary_factor": share(rotated, size), **rope_keys(keys, rotated)}


def with_heads(keys: Keys, config: Config, theta: float | None = None) -> Config:
    """A configuration and its heads, which rotate whole."""
    size = head_size(keys, config)
    return config | {"head_dim": size, **rotary(keys, size, theta)}


def with_heads_in_part(keys: Keys, config: Config) -> Config:
    """A configuration and its heads, of which a part rotates."""
    size = head_size(keys, config)
    return config | {"head_dim": size, **rotary_in_part(keys, size)}


def share(rotated: int, size: int) -> float:
    """A number whose product with ``size``, cut to a whole one as readers cut it, is ``rotated``."""
    part = rotated / max(size, 1)
    return part if int(size * part) == rotated else math.nextafter(part, math.inf)


def layer_types(keys: Keys, count: int, period: int) -> list[str]:
    """Which layers have a window.

    Args:
        count: of layers.
        period: each how many-th layer sees everything where the file does not say.
    """
    windowed = keys.pattern("attention.sliding_window_pattern", count, period)
    return ["sliding_attention" if has else "full_attention" for has in windowed]


def has_bias(keys: Keys, weight: str) -> bool:
    """Whether a linear map of the first layer, by the file's name, has one."""
    return f"blk.0.{weight}.bias" in keys.header.tensors


def has_qkv_bias(keys: Keys) -> bool:
    """Whether queries, keys and values have biases, be they in three tensors or in one."""
    return has_bias(keys, "attn_q") or has_bias(keys, "attn_qkv")
