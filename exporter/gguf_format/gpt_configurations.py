"""``config.json`` of models whose keys are named in ways of their own: GPT-2 and 3's descendants."""

from __future__ import annotations

from exporter.gguf_format.dims import Config, derived_head_size, layers, rotary, share
from exporter.gguf_format.keys import Keys
from exporter.gguf_format.reader import Header
from exporter.gguf_format.rotary import rope_keys

ALIBI = 8.0
"""The largest slope's exponent, which Hugging Face's classes know as a constant (Press et al. 2022)."""


def gpt2(keys: Keys) -> Config:
    hidden = keys.size("embedding_length")
    return {
        "n_layer": layers(keys),
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
    size = derived_head_size(keys, hidden, heads)
    rotated = keys.size("rope.dimension_count", size)
    rope = rope_keys(keys, rotated)
    return {
        "num_hidden_layers": layers(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": keys.integer("feed_forward_length"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": keys.flag("use_parallel_residual", True),
        "hidden_act": "gelu",
        "attention_bias": True,
        "rotary_pct": share(rotated, size),
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
    }


def falcon(keys: Keys) -> Config:
    """The 7B where one head of k and v serves all. Converters leave the frequencies' base out, and the 11B's, which has
    groups of heads and one norm, is none that could be guessed.
    """
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    kv_heads, two_norms = keys.size("attention.head_count_kv", 1), has_two_norms(keys.header)
    grouped = two_norms or kv_heads > 1
    if grouped and not two_norms:
        keys.number("rope.freq_base")
    keys.only("tensor_data_layout", "jploski")
    return {
        "num_hidden_layers": layers(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "ffn_hidden_size": keys.integer("feed_forward_length"),
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        **rotary(keys, derived_head_size(keys, hidden, heads)),
    }


def has_two_norms(header: Header) -> bool:
    """Whether attention and feed-forward have a norm each (Falcon 40B and 180B)."""
    return "blk.0.attn_norm_2.weight" in header.tensors


def bloom(keys: Keys) -> Config:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    _require_mha(keys, hidden, heads)
    return {
        "n_layer": layers(keys),
        "seq_length": keys.integer("context_length"),
        "hidden_size": hidden,
        "n_head": heads,
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
    }


def mpt(keys: Keys) -> Config:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    _require_mha(keys, hidden, heads)
    keys.only("attention.clamp_kqv", 0.0)
    bias = keys.number("attention.max_alibi_bias", 0.0)
    if bias != ALIBI:
        raise keys.unsupported([f"mpt.attention.max_alibi_bias = {bias}"])
    return {
        "n_layers": layers(keys),
        "max_seq_len": keys.integer("context_length"),
        "d_model": hidden,
        "n_heads": heads,
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
    }


def _require_mha(keys: Keys, hidden: int, heads: int) -> None:
    """Sizes for which Hugging Face's configuration has no key: each head its own k and v, four neurons a channel."""
    derived_head_size(keys, hidden, heads)
    keys.only("attention.head_count_kv", heads)
    keys.only("feed_forward_length", 4 * hidden)
