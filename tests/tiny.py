"""Tiny random checkpoints of every family, in the shapes that its configuration can take.

A family needs nothing here: its architecture's own configuration class in transformers is shrunk by the names
of its keys, and its tensors are drawn at random under the names and shapes of transformers' model. `SPECIAL`
lists what is particular to one family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from exporter.checkpoint import Checkpoint
from exporter.families import describe, families
from exporter.reference import model_class, named_tensors
from exporter.weights import Array

SMALL: Mapping[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "n_embd": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 64,
    "ffn_hidden_size": 96,
    "max_seq_len": 64,
    "seq_length": 64,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "query_pre_attn_scalar": 24,
    "sliding_window_pattern": 2,
    "window_size": 5,
    "rms_norm_eps": 0.01,
    "layer_norm_eps": 0.01,
    "layer_norm_epsilon": 0.01,
    "norm_epsilon": 0.01,
    "norm_eps": 0.01,
    "rotary_dim": 8,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.5,
    "logit_scale": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
"""Values by key, for every configuration that has the key. Epsilons are large, so that a wrong one shows."""

GENERIC: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "window": {"sliding_window": 5},
    "one_kv_head": {"num_key_value_heads": 1},
    "own_kv_heads": {"num_key_value_heads": 4},
    "wide_heads": {"head_dim": 24},
    "biases": {"attention_bias": True},
}
"""Variants of every family whose configuration has all the keys."""

DERIVED: Mapping[str, frozenset[str]] = {
    "gpt_bigcode": frozenset(["num_key_value_heads"]),
    "mpt": frozenset(["logit_scale"]),
}
"""Keys that transformers writes and does not read."""

LACKING: Mapping[str, frozenset[str]] = {
    "helium": frozenset(["wide_heads"]),
    "internlm3": frozenset(["biases"]),
}
"""Variants in `GENERIC` that transformers' own model fails in."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 6.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 32,
}

SCALARS: Mapping[str, float] = {"beta": 0.5, "eps": -1e-6}
"""Tensors without dims, by the ends of their names: Apertus', which are the same in all files."""

SPECIAL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gpt2": {
        "gelu": {"activation_function": "gelu", "n_inner": 80},
        "relu": {"activation_function": "relu"},
        "scores_unscaled": {"scale_attn_weights": False},
        "scores_by_layer": {"scale_attn_by_inverse_layer_idx": True},
        "upcast": {"reorder_and_upcast_attn": True},
    },
    "gpt_neox": {
        "sequential": {"use_parallel_residual": False},
        "half_rotary": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "whole_rotary": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
        "linear_rotary": {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}},
        "no_biases": {"attention_bias": False},
        "gelu_fast": {"hidden_act": "gelu_fast"},
    },
    "llama": {
        "ffn_biases": {"mlp_bias": True, "attention_bias": True},
        "llama3_rotary": {"rope_parameters": LLAMA3},
        "linear_rotary": {"rope_parameters": LINEAR},
    },
    "mistral": {"no_window": {"sliding_window": None}},
    "qwen2": {"upper_windows": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}},
    "qwen3": {
        "layer_types": {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    },
    "smollm3": {
        "some_rotate": {"no_rope_layers": [0, 1]},
        "windows": {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    },
    "gemma2": {
        "uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "capped": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "layer_types": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    },
    "gemma3": {
        "softcap": {"final_logit_softcapping": 3.0},
        "layer_types": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
        "linear_rotary": {
            "sliding_window": 5,
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 100.0}},
        },
        "one_local_layer": {"num_hidden_layers": 1, "sliding_window": 3},
    },
    "granite": {
        "ffn_biases": {"mlp_bias": True, "attention_bias": True},
        "no_multipliers": dict.fromkeys(
            ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), 1.0
        ),
    },
    "starcoder2": {"no_biases": {"use_bias": False, "sliding_window": 5}, "relu": {"hidden_act": "relu"}},
    "phi": {
        "linear_rotary": {"rope_parameters": LINEAR | {"partial_rotary_factor": 1.0}},
        "grouped": {"num_key_value_heads": 1, "hidden_act": "gelu"},
    },
    "gptj": {"whole_rotary": {"rotary_dim": 16, "n_inner": 80}},
    "opt": {"no_biases": {"enable_bias": False}, "gelu": {"activation_function": "gelu"}},
    "gpt_neo": {"no_windows": {"attention_types": [[["global"], 2]]}},
    "gpt_bigcode": {"by_head": {"multi_query": False, "scale_attn_weights": False}},
    "bloom": {"six_heads": {"n_head": 6, "hidden_size": 96}},
    "falcon": {
        "two_norms": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "one_norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "sequential": {"parallel_attn": False, "multi_query": False, "bias": True},
        "alibi": {"parallel_attn": False, "multi_query": False, "bias": True, "alibi": True},
        "alibi_shared_heads": {"alibi": True, "num_attention_heads": 6, "hidden_size": 144},
        "linear_rotary": {"rope_parameters": LINEAR},
    },
    "mpt": {"six_heads": {"n_heads": 6, "d_model": 96, "attn_config": {"softmax_scale": 0.3}}},
    "codegen": {"whole_rotary": {"rotary_dim": 16, "n_inner": 80}},
    "stablelm": {
        "parallel": {"use_parallel_residual": True},
        "qkv_biases": {"use_qkv_bias": True, "rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}},
    },
    "cohere2": {"layer_types": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}},
    "ernie4_5": {"all_biases": {"use_bias": True}},
    "glm": {
        "no_biases": {"attention_bias": False},
        "yarn": {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
        "whole_rotary": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
    },
    "glm4": {"no_biases": {"attention_bias": False}},
    "exaone4": {
        "no_window": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
        "layer_types": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    },
    "helium": {"all_biases": {"mlp_bias": True, "attention_bias": True}},
    "ministral": {
        "layer_types": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}
    },
    "vaultgemma": {
        "uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "layer_types": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    },
    "biogpt": {"unscaled": {"scale_embedding": False}, "relu": {"hidden_act": "relu"}},
    "hyperclovax": {
        "no_post_norms": {"use_post_norm": False, "mlp_bias": True, "attention_bias": True},
        "usual_scale": {"attention_multiplier": None, "rope_parameters": YARN},
    },
    "jais2": {"no_biases": {"mlp_bias": False, "attention_bias": False}},
    "nemotron": {
        "whole_rotary": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
        "all_biases": {"mlp_bias": True, "attention_bias": True},
    },
    "arcee": {"yarn": {"rope_parameters": YARN}, "all_biases": {"mlp_bias": True, "attention_bias": True}},
    "seed_oss": {
        "all_biases": {"mlp_bias": True, "attention_out_bias": True},
        "no_biases": {"attention_bias": False},
    },
    "olmo3": {
        "layer_types": {
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": YARN | {"attention_factor": 1.3}},
        }
    },
    "apertus": {"linear_rotary": {"rope_parameters": LINEAR}},
    "xglm": {
        "unscaled": {"scale_embedding": False},
        "padded": {"pad_token_id": 0, "activation_function": "relu"},
    },
    "nanochat": {
        "uncapped": {"final_logit_softcapping": None, "hidden_act": "gelu"},
        "capped": {"final_logit_softcapping": 1.0},
        "yarn": {"rope_parameters": YARN},
    },
    "hunyuan_v1_dense": {
        "alpha": {"rope_parameters": DYNAMIC | {"alpha": 50.0, "mscale": 1.0, "mscale_all_dim": 0.0}},
        "yarn": {"rope_parameters": YARN},
    },
    "internlm3": {
        "all_biases": {"mlp_bias": True, "attention_bias": True},
        "dynamic_rotary": {"rope_parameters": DYNAMIC},
    },
    "exaone": {
        "ffn_biases": {"mlp_bias": True, "attention_bias": True},
        "llama3_rotary": {"rope_parameters": LLAMA3},
    },
    "cwm": {
        "layer_types": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
        "all_full": {"layer_types": ["full_attention"] * 2, "mlp_bias": True, "rope_parameters": LLAMA3},
    },
    "iquestcoder": {"ffn_biases": {"mlp_bias": True, "attention_bias": True}},
    "ministral3": {
        "unscaled": {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.0}},
        "short": {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.5}},
    },
    "gpt_neox_japanese": {
        "half_rotary": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "narrow": {"intermediate_multiple_size": 2, "hidden_act": "relu"},
    },
    "persimmon": {
        "no_head_norms": {"qk_layernorm": False, "hidden_act": "gelu"},
        "linear_rotary": {"rope_parameters": LINEAR | {"partial_rotary_factor": 1.0}},
    },
    "phi3": {"partial_rotary": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}},
}


def variants() -> Iterator[tuple[str, str]]:
    """Every family with every variant that it can take."""
    for family in families():
        keys = config_class(family)().to_dict().keys() - DERIVED.get(family, frozenset())
        lacking = LACKING.get(family, frozenset())
        generic = {name: overrides for name, overrides in GENERIC.items() if name not in lacking}
        yield from ((family, name) for name, overrides in generic.items() if overrides.keys() <= keys)
        yield from ((family, name) for name in SPECIAL.get(family, {}))


def config_class(family: str) -> Any:
    return model_class(family)[1]


def tiny(family: str, seed: int = 0, variant: str = "default", **overrides: Any) -> Checkpoint:
    """A checkpoint of a small decoder with random weights, its configuration as transformers 5 writes it.

    Args:
        family: file name of the family.
        variant: a name in `GENERIC` or `SPECIAL`.
        overrides: further keys of the configuration.
    """
    kind = config_class(family)
    # Gemma keeps sliding_window_pattern as a private key.
    keys = {key.lstrip("_") for key in kind().to_dict()} - DERIVED.get(family, frozenset())
    special = GENERIC.get(variant) or SPECIAL.get(family, {}).get(variant, {})
    assert special or variant == "default", f"{family} has no variant {variant}"
    given = {key: value for key, value in SMALL.items() if key in keys}
    if "attention_types" in keys:  # of each layer, and not so many by default as there are
        count = overrides.get("num_hidden_layers", given["num_layers"])
        given["attention_types"] = [[["global" if i % 2 else "local"], 1] for i in range(count)]
    config = kind(**given | special | overrides)
    architecture = families()[family].ARCHITECTURES[0]
    with torch.device("meta"):
        model = model_class(family)[0](config)
    checkpoint = Checkpoint(f"tiny:{family}", config.to_dict() | {"architectures": [architecture]}, {})
    names: dict[int, str] = {}
    tensors = named_tensors(checkpoint, model)
    unique = {names.setdefault(id(tensor), name): tuple(tensor.shape) for name, tensor in tensors.items()}
    rng = np.random.default_rng(seed)
    weights = {name: Array(_draw(name, shape, rng)) for name, shape in unique.items()}
    return dataclasses.replace(checkpoint, weights=weights)


def loses_heads(family: str) -> bool:
    """Whether heads can be taken out of a family's attention."""
    return not any(layer.attention.keeps_heads for layer in describe(tiny(family)).layers)


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Gains away from 1 and biases away from 0, so that one left out shows; matrices that keep a norm."""
    if not shape:
        return np.array(SCALARS[name.rpartition(".")[2]], np.float32)
    if len(shape) == 1:
        drawn = 0.5 * rng.standard_normal(shape) if name.endswith("bias") else rng.uniform(0.5, 1.5, shape)
    else:
        drawn = rng.standard_normal(shape) / np.sqrt(shape[-1])
    return drawn.astype(np.float32)
