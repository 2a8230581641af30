"""What llama.cpp's convert_hf_to_gguf.py writes of a model: keys, and values of tensors.

It is written out here again, and not taken from the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import torch

KINDS: Mapping[str, str] = {
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "glm": "chatglm",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "hunyuan_v1_dense": "hunyuan-dense",
    "ministral3": "mistral3",
    "mistral": "mistral3",  # as the text model of Mistral3ForConditionalGeneration; alone it is a llama
    "olmo3": "olmo2",
    "phi": "phi2",
}
"""llama.cpp's architecture by Hugging Face's model type, where they are called otherwise."""


def kind_of(config: Any) -> str:
    return KINDS.get(config.model_type, config.model_type)


def write_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    OWN.get(kind_of(config), general)(writer, config)


def general(writer: gguf.GGUFWriter, config: Any) -> None:
    """What the converters of most models write first."""
    told = config.to_dict()

    def stated(*names: str) -> Any:
        return next((told[name] for name in names if told.get(name) is not None), None)

    rope = told.get("rope_parameters") or {}
    everywhere = rope.get("full_attention", rope)
    for write, value in (
        (writer.add_block_count, stated("num_hidden_layers", "n_layer")),
        (writer.add_context_length, stated("max_position_embeddings", "n_positions")),
        (writer.add_embedding_length, stated("hidden_size", "n_embd")),
        (writer.add_feed_forward_length, stated("intermediate_size", "n_inner")),
        (writer.add_head_count, stated("num_attention_heads", "n_head")),
        (writer.add_head_count_kv, stated("num_key_value_heads")),
        (writer.add_rope_freq_base, everywhere.get("rope_theta")),
        (writer.add_rope_freq_base_swa, rope.get("sliding_attention", {}).get("rope_theta")),
        (writer.add_layer_norm_rms_eps, stated("rms_norm_eps", "norm_eps")),
        (writer.add_layer_norm_eps, stated("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
        (writer.add_key_length, stated("head_dim")),
        (writer.add_value_length, stated("head_dim")),
    ):
        if value is not None:
            write(value)
    if everywhere.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(everywhere["rope_type"]))
        writer.add_rope_scaling_factor(everywhere["factor"])
    if everywhere.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(everywhere["original_max_position_embeddings"])
        for write, key in (
            (writer.add_rope_scaling_yarn_attn_factor, "attention_factor"),
            (writer.add_rope_scaling_yarn_beta_fast, "beta_fast"),
            (writer.add_rope_scaling_yarn_beta_slow, "beta_slow"),
        ):
            if everywhere.get(key) is not None:
                write(everywhere[key])


def write_xielu(writer: gguf.GGUFWriter, state: Mapping[str, torch.Tensor]) -> None:
    """What the activation of Apertus has learned, and its constants, layer by layer."""
    for name in ("alpha_n", "alpha_p", "beta", "eps"):
        if values := [tensor.item() for key, tensor in state.items() if key.endswith(f".act_fn.{name}")]:
            writer.add_array(f"xielu.{name}", values)


def head_dim_of(config: Any) -> int:
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def _rotated(config: Any) -> int:
    return int(head_dim_of(config) * config.rope_parameters["partial_rotary_factor"])


def _windows(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _llama(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim_of(config))


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    _llama(writer, config)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _olmo(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_layer_norm_eps(1e-5)


def _olmo2(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    if config.model_type == "olmo3":
        _windows(writer, config)


def _nemotron(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_rope_dimension_count(_rotated(config))
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _glm4(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_rope_dimension_count(_rotated(config))


def _chatglm(writer: gguf.GGUFWriter, config: Any) -> None:
    """Context, epsilon and base are looked up under names that Hugging Face's configuration does not have."""
    writer.add_context_length(config.hidden_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_rotated(config))
    writer.add_rope_freq_base(10000)


def _exaone4(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_vocab_size(config.vocab_size)
    if config.sliding_window is not None:
        _windows(writer, config)


def _exaone(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)


def _hunyuan_dense(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    rope = config.rope_parameters
    if rope["rope_type"] == "dynamic":
        power = config.head_dim / (config.head_dim - 2)
        writer.add_rope_freq_base(rope["rope_theta"] * rope["alpha"] ** power)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(256 * 1024)
        writer.add_context_length(256 * 1024)


def _mistral3(writer: gguf.GGUFWriter, config: Any) -> None:
    _llama(writer, config)
    if config.model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(config.rope_parameters["mscale_all_dim"])
        writer.add_attn_temperature_scale(config.rope_parameters["llama_4_scaling_beta"])


def _jais2(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_rope_dimension_count(head_dim_of(config))


def _command_r(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_logit_scale(config.logit_scale)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _cohere2(writer: gguf.GGUFWriter, config: Any) -> None:
    _command_r(writer, config)
    writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)


def _gemma(writer: gguf.GGUFWriter, config: Any) -> None:
    """Gemma's and Gemma 2's: no base of the frequencies."""
    general(writer, config)
    writer.kv_data[0].pop(f"{kind_of(config)}.rope.freq_base")
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_sliding_window(config.sliding_window)


def _phi2(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.kv_data[0].pop("phi2.rope.freq_base")
    writer.add_rope_dimension_count(_rotated(config))


def _phi3(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_rope_dimension_count(
        int(head_dim_of(config) * config.rope_parameters.get("partial_rotary_factor", 1.0))
    )
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_sliding_window(config.sliding_window or 0)


def _stablelm(writer: gguf.GGUFWriter, config: Any) -> None:
    """Blocks side by side are the converter's default, where a configuration says nothing."""
    general(writer, config)
    writer.kv_data[0].pop("stablelm.rope.freq_base")
    writer.add_parallel_residual(True)
    writer.add_rope_dimension_count(_rotated(config))


def _gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.add_feed_forward_length(4 * config.hidden_size)
    if config.model_type == "gpt_bigcode":
        writer.add_head_count_kv(1)


def _gptneox(writer: gguf.GGUFWriter, config: Any) -> None:
    general(writer, config)
    writer.kv_data[0].pop("gptneox.rope.freq_base")
    writer.add_rope_dimension_count(_rotated(config))
    writer.add_parallel_residual(config.use_parallel_residual)


def _falcon(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(2048)
    writer.add_tensor_data_layout("jploski")
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _bloom(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(getattr(config, "seq_length", config.hidden_size))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _mpt(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(4 * config.d_model)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)


OWN: Mapping[str, Callable[[gguf.GGUFWriter, Any], None]] = {
    "apertus": _llama,
    "arcee": _llama,
    "bloom": _bloom,
    "chatglm": _chatglm,
    "cohere2": _cohere2,
    "command-r": _command_r,
    "exaone": _exaone,
    "exaone4": _exaone4,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma,
    "gemma3": _gemma3,
    "glm4": _glm4,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "granite": _granite,
    "hunyuan-dense": _hunyuan_dense,
    "jais2": _jais2,
    "llama": _llama,
    "mistral3": _mistral3,
    "mpt": _mpt,
    "nemotron": _nemotron,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "phi2": _phi2,
    "phi3": _phi3,
    "smollm3": _llama,
    "stablelm": _stablelm,
    "starcoder": _gpt2,
}
"""Converters by architecture, of those that write more or other than `general`."""

PAIRS_TOGETHER = ("arcee", "granite", "llama", "mistral3", "olmo", "smollm3")
ONE_ADDED = ("gemma", "gemma2", "gemma3", "nemotron")


def name_in_table(config: Any, name: str) -> str:
    """By which the gguf library's table knows a tensor of Hugging Face's."""
    return name.removeprefix("transformer.") if config.model_type == "bloom" else name


def converted(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """What becomes of a tensor's values."""
    kind = kind_of(config)
    if kind in PAIRS_TOGETHER and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if kind in ONE_ADDED and name.endswith("norm.weight"):
        return values + np.float32(1)
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if kind in ("bloom", "gptneox") and "query_key_value" in name:
        heads = config.num_attention_heads
        by_head = values.reshape(heads, 3, config.hidden_size // heads, *values.shape[1:])
        return np.concatenate([by_head[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    if kind == "falcon" and "query_key_value" in name:
        groups, size = config.num_kv_heads, config.head_dim
        by_group = values.reshape(groups, -1, size, values.shape[1])
        parts = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
        return np.concatenate([part.reshape(-1, values.shape[1]) for part in parts])
    return values


def llama3_factors(config: Any) -> np.ndarray:
    """What frequencies are divided by."""
    rope = config.rope_parameters
    head_dim = head_dim_of(config)
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    context = rope["original_max_position_embeddings"]
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < context / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > context / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(float(1 / ((1 - smooth) / rope["factor"] + smooth)))
    return np.array(factors, dtype=np.float32)
