"""``config.json`` out of a GGUF file's metadata, one function an architecture.

Each asks for the keys that it honours; what is left over is refused by name (`exporter.gguf_format.keys`).
"""

from __future__ import annotations

from exporter.gguf_format.dims import (
    Config,
    has_bias,
    has_qkv_bias,
    head_size,
    layer_types,
    rotary,
    rotary_in_part,
    sizes,
    with_heads,
    with_heads_in_part,
)
from exporter.gguf_format.keys import Keys
from exporter.gguf_format.reader import Header
from exporter.gguf_format.xielu import require_constants

UNSCALED = {"rope_type": "default"}
"""Said of families that Hugging Face scales where nothing is said."""


def llama(keys: Keys) -> Config:
    return _gated_silu(keys) | {
        "attention_bias": has_qkv_bias(keys),
        "mlp_bias": has_bias(keys, "ffn_up"),
    }


def arcee(keys: Keys) -> Config:
    return llama(keys) | {"hidden_act": "relu2"}


def apertus(keys: Keys) -> Config:
    require_constants(keys)
    config = with_heads(keys, _gated(keys))
    return config | {
        "hidden_act": "xielu",
        "attention_bias": has_qkv_bias(keys),
        "rope_scaling": config["rope_scaling"] or UNSCALED,
    }


def smollm3(keys: Keys) -> Config:
    """Which layers have no positions is no key but a constant of llama.cpp."""
    return llama(keys) | {"no_rope_layer_interval": 4}


def seed_oss(keys: Keys) -> Config:
    return llama(keys) | {"attention_out_bias": has_bias(keys, "attn_output")}


def ernie4_5(keys: Keys) -> Config:
    return _gated_silu(keys) | {"use_bias": has_qkv_bias(keys)}


def hunyuan_dense(keys: Keys) -> Config:
    """What an ``alpha`` makes of the base of the frequencies is in the file's base."""
    return _gated_silu(keys) | {"attention_bias": has_qkv_bias(keys)}


def mistral(keys: Keys) -> Config:
    return _gated_silu(keys) | {"sliding_window": None}


def has_no_yarn(header: Header) -> bool:
    """Whether a file of the architecture ``mistral3`` is no Ministral 3, but the text model of a Mistral Small 3."""
    return header.metadata.get("mistral3.rope.scaling.type") != "yarn"


def ministral3(keys: Keys) -> Config:
    """Of YaRN's two ``mscale`` a file has the second; llama.cpp takes the first for 1."""
    config = mistral(keys)
    always = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    grows = keys.number("attention.temperature_scale", 0.0)
    scaling = config["rope_scaling"] or UNSCALED
    return config | {
        "rope_scaling": {
            **scaling,
            **({"mscale": 1.0, "mscale_all_dim": always} if always else {}),
            "llama_4_scaling_beta": grows,
        }
    }


def qwen2(keys: Keys) -> Config:
    config = _gated(keys)
    head_dim = head_size(keys, config)
    if head_dim * config["num_attention_heads"] != config["hidden_size"]:
        raise keys.unsupported([f"qwen2.attention.key_length = {head_dim}"])
    return config | {"hidden_act": "silu", **rotary(keys, head_dim)}


def qwen3(keys: Keys) -> Config:
    return _gated_silu(keys) | {"attention_bias": False}


def phi3(keys: Keys) -> Config:
    config = _gated(keys)
    window = keys.integer("attention.sliding_window", 0)
    return config | {
        "hidden_act": "silu",
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        "sliding_window": window or None,
        **rotary_in_part(keys, head_size(keys, config)),
    }


def gemma(keys: Keys) -> Config:
    return with_heads(keys, _gated(keys)) | {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False}


def gemma2(keys: Keys) -> Config:
    config = _gemma(keys, period=2, layers_of_27b=46)
    return config | {
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def gemma3(keys: Keys) -> Config:
    config = _gemma(keys, period=6, layers_of_27b=62, theta=1e6)
    return config | {
        "sliding_window": keys.integer("attention.sliding_window"),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
    }


def _gemma(keys: Keys, *, period: int, layers_of_27b: int, theta: float | None = None) -> Config:
    """What Gemma 2 and 3 say alike.

    Args:
        period: see `layer_types`.
        layers_of_27b: llama.cpp knows the 27B model, which alone scales scores by hidden/heads, by their number.
    """
    config = with_heads(keys, _gated(keys), theta)
    layers, share = config["num_hidden_layers"], config["hidden_size"] // config["num_attention_heads"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": share if layers == layers_of_27b else config["head_dim"],
        "layer_types": layer_types(keys, layers, period),
        "attention_bias": False,
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
    return _gated_silu(keys) | {"attention_bias": has_qkv_bias(keys)}


def has_window(header: Header) -> bool:
    """Whether a file of the architecture ``olmo2`` is an OLMo 3."""
    return header.metadata.get("olmo2.attention.sliding_window", 0) != 0


def olmo3(keys: Keys) -> Config:
    """Layers with a window have frequencies that are not scaled."""
    config = olmo2(keys)
    theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling")
    local = keys.number("rope.freq_base_swa", theta)
    return config | {
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": layer_types(keys, config["num_hidden_layers"], 4),
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
    }


def olmo(keys: Keys) -> Config:
    """The file has a key for what is a constant in Hugging Face's OLMo."""
    epsilon = keys.number("attention.layer_norm_epsilon")
    if epsilon != 1e-5:
        raise keys.unsupported([f"olmo.attention.layer_norm_epsilon = {epsilon}"])
    return with_heads(keys, sizes(keys)) | {"hidden_act": "silu", "attention_bias": False}


def nemotron(keys: Keys) -> Config:
    """Converters write the epsilon under both its names."""
    keys.inert("attention.layer_norm_rms_epsilon")
    return with_heads_in_part(keys, sizes(keys)) | {
        "hidden_act": "relu2",
        "norm_eps": keys.number("attention.layer_norm_epsilon"),
        "attention_bias": has_qkv_bias(keys),
        "mlp_bias": has_bias(keys, "ffn_up"),
    }


def glm(keys: Keys) -> Config:
    return with_heads_in_part(keys, _gated(keys)) | {
        "hidden_act": "silu",
        "attention_bias": has_qkv_bias(keys),
    }


def exaone4(keys: Keys) -> Config:
    config = _gated_silu(keys)
    layers, window = config["num_hidden_layers"], keys.integer("attention.sliding_window", 0)
    return config | {
        "sliding_window": window or None,
        "layer_types": layer_types(keys, layers, 4) if window else ["full_attention"] * layers,
    }


def command_r(keys: Keys) -> Config:
    if "blk.0.attn_q_norm.weight" in keys.header.tensors:
        raise keys.unsupported(["blk.0.attn_q_norm.weight: norms of q and k that differ from head to head"])
    return with_heads(keys, sizes(keys)) | {
        "hidden_act": "silu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "logit_scale": keys.number("logit_scale"),
        "attention_bias": has_qkv_bias(keys),
    }


def cohere2(keys: Keys) -> Config:
    config = command_r(keys)
    return config | {
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": layer_types(keys, config["num_hidden_layers"], 4),
    }


def jais2(keys: Keys) -> Config:
    return with_heads(keys, sizes(keys)) | {
        "hidden_act": "relu2",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "attention_bias": has_qkv_bias(keys),
        "mlp_bias": has_bias(keys, "ffn_up"),
    }


def starcoder2(keys: Keys) -> Config:
    return with_heads(keys, sizes(keys)) | {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "sliding_window": keys.integer("attention.sliding_window", 0) or None,
        "use_bias": has_qkv_bias(keys),
    }


def stablelm(keys: Keys) -> Config:
    """Converters write ``use_parallel_residual`` whatever the model does; llama.cpp goes by the second norm."""
    config = sizes(keys)
    keys.inert("use_parallel_residual")
    return config | {
        "hidden_act": "silu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in keys.header.tensors,
        "use_qkv_bias": has_qkv_bias(keys),
        **rotary_in_part(keys, head_size(keys, config)),
    }


def phi2(keys: Keys) -> Config:
    return with_heads_in_part(keys, sizes(keys)) | {
        "hidden_act": "gelu_new",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
    }


def _gated(keys: Keys) -> Config:
    """What all decoders with a gated feed-forward and RMSNorm say alike."""
    return sizes(keys) | {"rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")}


def _gated_silu(keys: Keys) -> Config:
    """The same with a SiLU and heads that rotate whole."""
    return with_heads(keys, _gated(keys)) | {"hidden_act": "silu"}
