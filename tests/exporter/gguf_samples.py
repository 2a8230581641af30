"""Small GGUF files: tiny random transformers models, converted as llama.cpp does (`gguf_converter`)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import gguf_converter as converter
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

FOUR_LAYERS = {**DIMS, "num_hidden_layers": 4}
WINDOWS = ["sliding_attention"] * 3 + ["full_attention"]
FALCON = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**DIMS, rms_norm_eps=1e-5, tie_word_embeddings=False),
    "llama-tied": lambda: transformers.LlamaConfig(**DIMS, head_dim=32, tie_word_embeddings=True),
    "llama-bias": lambda: transformers.LlamaConfig(**DIMS, attention_bias=True),
    "llama3": lambda: transformers.LlamaConfig(**DIMS, rope_parameters=LLAMA3),
    "llama-linear": lambda: transformers.LlamaConfig(
        **DIMS, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "qwen2": lambda: transformers.Qwen2Config(**DIMS, tie_word_embeddings=True),
    "qwen3-yarn": lambda: transformers.Qwen3Config(**DIMS, rope_parameters=YARN),
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
    "exaone": lambda: transformers.ExaoneConfig(**DIMS, tie_word_embeddings=True, eos_token_id=2),
    "exaone-llama3": lambda: transformers.ExaoneConfig(**DIMS, rope_parameters=LLAMA3, eos_token_id=2),
    "exaone4": lambda: transformers.Exaone4Config(
        **DIMS, sliding_window=None, layer_types=["full_attention"] * 2, tie_word_embeddings=True
    ),
    "exaone4-hybrid": lambda: transformers.Exaone4Config(
        **FOUR_LAYERS, sliding_window=8, layer_types=WINDOWS, rms_norm_eps=1e-5
    ),
    "arcee": lambda: transformers.ArceeConfig(**DIMS, rms_norm_eps=1e-5),
    "arcee-yarn": lambda: transformers.ArceeConfig(**DIMS, rope_parameters=YARN),
    "apertus": lambda: transformers.ApertusConfig(**DIMS, rope_parameters=LLAMA3 | {"rope_theta": 12e6}),
    "apertus-unscaled": lambda: transformers.ApertusConfig(
        **DIMS, attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 12e6}
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**FOUR_LAYERS, pad_token_id=0),
    "seed_oss": lambda: transformers.SeedOssConfig(**DIMS, head_dim=32, attention_bias=True),
    "seed_oss-plain": lambda: transformers.SeedOssConfig(
        **DIMS, attention_bias=False, tie_word_embeddings=True
    ),
    "ernie4_5": lambda: transformers.Ernie4_5Config(**DIMS, head_dim=24),
    "ernie4_5-bias": lambda: transformers.Ernie4_5Config(**DIMS, use_bias=True),
    "command-r": lambda: transformers.CohereConfig(**DIMS, logit_scale=0.25),
    "cohere2": lambda: transformers.Cohere2Config(**FOUR_LAYERS, sliding_window=8, logit_scale=0.25),
    "chatglm": lambda: transformers.GlmConfig(
        **{**DIMS, "max_position_embeddings": DIMS["hidden_size"]},
        head_dim=16,
        attention_bias=True,
        rms_norm_eps=1e-5,
        pad_token_id=0,
    ),
    "olmo3": lambda: transformers.Olmo3Config(**FOUR_LAYERS, sliding_window=8, rms_norm_eps=1e-5),
    "olmo3-yarn": lambda: transformers.Olmo3Config(
        **DIMS,
        sliding_window=8,
        layer_types=WINDOWS[2:],
        rope_parameters={
            "full_attention": YARN | {"attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **DIMS, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=2.0
    ),
    "falcon": lambda: transformers.FalconConfig(**FALCON, num_kv_heads=1),
    "falcon-40b": lambda: transformers.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4, seq_length=128
    ),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4, max_seq_len=128
    ),
    "mpt-untied": lambda: transformers.MptConfig(
        vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4, max_seq_len=128, tie_word_embeddings=False
    ),
    "hunyuan-dense": lambda: transformers.HunYuanDenseV1Config(
        **{**DIMS, "max_position_embeddings": 256 * 1024},
        head_dim=16,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 128.0},
    ),
    "hunyuan-dense-bias": lambda: transformers.HunYuanDenseV1Config(**DIMS, head_dim=24, attention_bias=True),
    "mistral3": lambda: transformers.Ministral3Config(
        **DIMS,
        head_dim=32,
        pad_token_id=0,
        rope_parameters=YARN
        | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16.0, "llama_4_scaling_beta": 0.5},
    ),
    "mistral3-plain": lambda: transformers.MistralConfig(**DIMS, head_dim=32, sliding_window=None),
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
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
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
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, Type] | None] = {},
) -> None:
    """Write a model as GGUF.

    Args:
        quantize: type of all matrices whose rows are whole blocks of it.
        keys: more metadata, or other values of what there is.
        tensors: more tensors, in place of those of the same name, as float32 or as bytes and their type; None leaves
            one out.
    """
    config, kind = model.config, converter.kind_of(model.config)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    writer = gguf.GGUFWriter(path, kind)
    converter.write_keys(writer, config)
    converter.write_xielu(writer, model.state_dict())
    for key, value in keys.items():
        writer.kv_data[0].pop(key, None)
        _write_value(writer, key, value)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if (tied and name == "lm_head.weight") or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if ".act_fn." in name:
            continue  # they are keys
        ours = table.get_name(converter.name_in_table(config, name), try_suffixes=(".weight", ".bias"))
        assert ours is not None, name
        if ours in tensors:
            continue
        values = converter.converted(name, tensor.numpy(), config)
        type = (
            quantize
            if values.ndim == 2 and values.shape[-1] % gguf.GGML_QUANT_SIZES[quantize][0] == 0
            else Type.F32
        )
        writer.add_tensor(ours, gguf.quants.quantize(np.ascontiguousarray(values), type), raw_dtype=type)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", converter.llama3_factors(config))
    for name, values in tensors.items():
        if values is not None:
            data, raw_type = values if isinstance(values, tuple) else (values, None)
            writer.add_tensor(name, data, raw_dtype=raw_type)
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


FLOAT16_FIELDS: Mapping[Type, tuple[int, ...]] = {
    Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,),
    Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,),
}  # fmt: skip
"""Bytes of a block at which a float16 begins."""


def random_blocks(type: Type, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Any bits at all but for float16 scales, which are finite. uint8 ``[rows, bytes]``."""
    rng = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[type][1]
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in FLOAT16_FIELDS[type]:
        half = rng.integers(0, 0x7C00, (rows, blocks), dtype=np.uint16)  # below infinity, subnormals included
        half |= rng.integers(0, 2, half.shape, dtype=np.uint16) << np.uint16(15)
        data[:, :, at : at + 2] = half.view(np.uint8).reshape(rows, blocks, 2)
    return data.reshape(rows, -1)


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
