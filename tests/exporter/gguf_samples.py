"""Small GGUF files: tiny random transformers models, converted as llama.cpp's convert_hf_to_gguf.py does.

What the converter does to values is written out here again, and not taken from the code under test.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

VOCAB = 96
DIMS = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**DIMS, rms_norm_eps=1e-5, tie_word_embeddings=False),
    "llama-tied": lambda: transformers.LlamaConfig(**DIMS, head_dim=32, tie_word_embeddings=True),
    "llama-bias": lambda: transformers.LlamaConfig(**DIMS, attention_bias=True),
    "llama3": lambda: transformers.LlamaConfig(
        **DIMS,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "llama-linear": lambda: transformers.LlamaConfig(
        **DIMS, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "qwen2": lambda: transformers.Qwen2Config(**DIMS, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**DIMS, head_dim=24, tie_word_embeddings=False),
    "gemma": lambda: transformers.GemmaConfig(**DIMS, head_dim=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**DIMS, "num_hidden_layers": 7}, head_dim=16, query_pre_attn_scalar=16, sliding_window=8
    ),
    "phi3": lambda: transformers.Phi3Config(**DIMS, sliding_window=9, pad_token_id=0),
    "phi3-partial": lambda: transformers.Phi3Config(
        **DIMS, pad_token_id=0, rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=64, n_layer=2, n_head=4
    ),
    "granite": lambda: transformers.GraniteConfig(
        **DIMS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        attention_multiplier=0.3,
        residual_multiplier=0.22,
        logits_scaling=8.0,
    ),
    "olmo2": lambda: transformers.Olmo2Config(**DIMS, rms_norm_eps=1e-5, pad_token_id=0),
    "olmo": lambda: transformers.OlmoConfig(**DIMS, pad_token_id=0),
    "nemotron": lambda: transformers.NemotronConfig(**DIMS, head_dim=32),
    "nemotron-bias": lambda: transformers.NemotronConfig(**DIMS, attention_bias=True, mlp_bias=True),
    "glm4": lambda: transformers.Glm4Config(**DIMS, head_dim=32, pad_token_id=0),
    "exaone4": lambda: transformers.Exaone4Config(
        **DIMS, sliding_window=None, layer_types=["full_attention"] * 2, tie_word_embeddings=True
    ),
    "jais2": lambda: transformers.Jais2Config(**DIMS),
    "starcoder2": lambda: transformers.Starcoder2Config(
        **DIMS, bos_token_id=0, eos_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    "stablelm": lambda: transformers.StableLmConfig(**DIMS, use_qkv_bias=True),
    "stablelm-parallel": lambda: transformers.StableLmConfig(**DIMS, use_parallel_residual=True),
    "starcoder": lambda: transformers.GPTBigCodeConfig(
        vocab_size=VOCAB, n_positions=128, n_embd=64, n_layer=2, n_head=4
    ),
    "phi2": lambda: transformers.PhiConfig(**DIMS, tie_word_embeddings=False),
    "gptneox": lambda: transformers.GPTNeoXConfig(
        **{key: value for key, value in DIMS.items() if key != "num_key_value_heads"}
    ),
}


@functools.cache
def tiny(name: str) -> Any:
    """A random model of `CONFIGS`, its norms and biases random too, so that a wrong one shows."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def convert(
    model: Any,
    path: Path,
    quantize: Type = Type.F32,
    *,
    keys: Mapping[str, Any] = {},
    tensors: Mapping[str, np.ndarray | None] = {},
) -> None:
    """Write a model as GGUF.

    Args:
        quantize: type of all matrices whose rows are whole blocks of it.
        keys: more metadata, or other values of what there is.
        tensors: more tensors, in place of those of the same name; None leaves one out.
    """
    config = model.config
    kind = config.model_type.removesuffix("_text").replace("gpt_neox", "gptneox")
    kind = {"phi": "phi2", "gpt_bigcode": "starcoder"}.get(kind, kind)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    writer = gguf.GGUFWriter(path, kind)
    _write_keys(writer, kind, config)
    for key, value in keys.items():
        writer.kv_data[0].pop(key, None)
        _write_value(writer, key, value)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if (tied and name == "lm_head.weight") or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        ours = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ours is not None, name
        if ours in tensors:
            continue
        values = _converted(kind, name, tensor.numpy(), config)
        type = (
            quantize
            if values.ndim == 2 and values.shape[-1] % gguf.GGML_QUANT_SIZES[quantize][0] == 0
            else Type.F32
        )
        writer.add_tensor(ours, gguf.quants.quantize(np.ascontiguousarray(values), type), raw_dtype=type)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write_keys(writer: gguf.GGUFWriter, kind: str, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if kind in ("gpt2", "starcoder"):
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        if kind == "starcoder":
            writer.add_head_count_kv(1)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    if kind == "gptneox":
        rotated = int(
            config.rope_parameters["partial_rotary_factor"] * config.hidden_size / config.num_attention_heads
        )
        writer.add_rope_dimension_count(rotated)
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_head_count_kv(config.num_key_value_heads)
    if kind in ("phi2", "stablelm"):
        if kind == "stablelm":
            writer.add_parallel_residual(
                True
            )  # the converter's default, where the configuration says nothing
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
        return
    if kind in ("starcoder2", "olmo", "nemotron", "jais2"):
        writer.add_rope_freq_base(rope["rope_theta"])
        if kind == "jais2":
            writer.add_layer_norm_eps(config.layer_norm_eps)
            writer.add_rope_dimension_count(head_dim)
            return
        if kind == "nemotron":
            writer.add_vocab_size(config.vocab_size)
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
            writer.add_layer_norm_eps(config.norm_eps)
            writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
            writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        else:
            writer.add_layer_norm_eps(1e-5 if kind == "olmo" else config.norm_epsilon)
        return
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if kind == "gemma3":
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        return
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("llama", "granite"):
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if kind == "glm4":
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    if kind == "exaone4":
        writer.add_vocab_size(config.vocab_size)
    if kind == "phi3":
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(config.sliding_window or 0)


def _converted(kind: str, name: str, values: np.ndarray, config: Any) -> np.ndarray:
    if kind in ("llama", "granite", "olmo") and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if kind in ("gemma", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if kind == "gptneox" and "query_key_value" in name:
        heads = config.num_attention_heads
        by_head = values.reshape(heads, 3, config.hidden_size // heads, *values.shape[1:])
        return np.concatenate([by_head[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    return values


def _llama3_factors(config: Any) -> np.ndarray:
    rope = config.rope_parameters
    head_dim = config.head_dim
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


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of bytes, by byte (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def byte_level_vocabulary(merged: list[tuple[str, str]]) -> dict[str, Any]:
    """A vocabulary of all bytes, some merges and three special tokens, as metadata of a GGUF file."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), *(a + b for a, b in merged)]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in merged],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    }


MERGES = [
    ("h", "e"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
    ("Ġ", "w"),
    ("o", "r"),
    ("Ġw", "or"),
    ("1", "2"),
]


def convert_with_tokenizer(model: Any, path: Path) -> None:
    """A model with as many rows in its embedding as `byte_level_vocabulary` has tokens."""
    metadata = byte_level_vocabulary(MERGES)
    model = copy.deepcopy(model)
    model.resize_token_embeddings(len(metadata["tokenizer.ggml.tokens"]))
    convert(model, path, keys=metadata)
