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

from exporter.gguf_format import configurations
from exporter.gguf_format.configurations import Config
from exporter.gguf_format.keys import Keys
from exporter.weight_expressions import Permuted, plus, transposed
from exporter.weights import Weight

Undo: TypeAlias = Callable[[Weight, Mapping[str, Any]], Weight]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        class_name: Hugging Face class, for ``architectures``.
        model_type: for ``config.json``.
        tensors: Hugging Face tensor names without ``.weight`` or ``.bias``, ``{}`` for the layer.
        config: gives the keys of ``config.json`` that are the architecture's own.
        undo: what gives a tensor's Hugging Face value, by name as in `tensors`, or with its ``.weight`` where a bias is
            as it was.
    """

    class_name: str
    model_type: str
    tensors: tuple[str, ...]
    config: Callable[[Keys], Config]
    undo: Mapping[str, Undo] = dataclasses.field(default_factory=dict)


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
_BEHIND = tuple(f"{_LAYER}.post_{block}_layernorm" for block in ("attention", "feedforward"))
_BLOCK = "transformer.h.{}"
_CONV1D = tuple(f"{_BLOCK}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
_GPT = (
    *("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
    *(f"{_BLOCK}.ln_1", f"{_BLOCK}.ln_2", *_CONV1D),
)
_NEOX = "gpt_neox.layers.{}"

_PAIRS_APART: Mapping[str, Undo] = {
    f"{_LAYER}.self_attn.q_proj": lambda w, config: _halves(w, config["num_attention_heads"]),
    f"{_LAYER}.self_attn.k_proj": lambda w, config: _halves(w, config["num_key_value_heads"]),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM",
        "llama",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED),
        configurations.llama,
        _PAIRS_APART,
    ),
    "granite": Architecture(
        "GraniteForCausalLM",
        "granite",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED),
        configurations.granite,
        _PAIRS_APART,
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        (*_OUTSIDE, *_BEHIND, *_HEAD_NORMS, *_ATTENTION, *_GATED),
        configurations.olmo2,
    ),
    "olmo": Architecture(
        "OlmoForCausalLM",
        "olmo",
        ("model.embed_tokens", "lm_head", *_ATTENTION, *_GATED),
        configurations.olmo,
        _PAIRS_APART,
    ),
    "nemotron": Architecture(
        "NemotronForCausalLM",
        "nemotron",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED[1:]),
        configurations.nemotron,
        {f"{name}.weight": _without_one for name in (*_NORMS, "model.norm")},
    ),
    "glm4": Architecture(
        "Glm4ForCausalLM",
        "glm4",
        (
            *_OUTSIDE,
            *_NORMS,
            *(f"{_LAYER}.post_{block}_layernorm" for block in ("self_attn", "mlp")),
            *_ATTENTION,
            *(f"{_LAYER}.mlp.{name}_proj" for name in ("gate_up", "down")),
        ),
        configurations.glm4,
    ),
    "exaone4": Architecture(
        "Exaone4ForCausalLM",
        "exaone4",
        (*_OUTSIDE, *_BEHIND, *_HEAD_NORMS, *_ATTENTION, *_GATED),
        configurations.exaone4,
    ),
    "jais2": Architecture(
        "Jais2ForCausalLM", "jais2", (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED[1:]), configurations.jais2
    ),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM",
        "starcoder2",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *(f"{_LAYER}.mlp.{name}" for name in ("c_fc", "c_proj"))),
        configurations.starcoder2,
    ),
    "stablelm": Architecture(
        "StableLmForCausalLM",
        "stablelm",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED),
        configurations.stablelm,
    ),
    "phi2": Architecture(
        "PhiForCausalLM",
        "phi",
        (
            "model.embed_tokens",
            "model.final_layernorm",
            "lm_head",
            f"{_LAYER}.input_layernorm",
            *_ATTENTION[:3],
            *(f"{_LAYER}.{name}" for name in ("self_attn.dense", "mlp.fc1", "mlp.fc2")),
        ),
        configurations.phi2,
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", "qwen2", (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED), configurations.qwen2
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        (*_OUTSIDE, *_NORMS, *_HEAD_NORMS, *_ATTENTION, *_GATED),
        configurations.qwen3,
    ),
    "gemma": Architecture(
        "GemmaForCausalLM",
        "gemma",
        (*_OUTSIDE[:2], *_NORMS, *_ATTENTION, *_GATED),
        configurations.gemma,
        dict.fromkeys((*_NORMS, "model.norm"), _without_one),
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        (*_OUTSIDE, *_GEMMA_NORMS, *_ATTENTION, *_GATED),
        configurations.gemma3,
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
        configurations.phi3,
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        _GPT,
        configurations.gpt2,
        dict.fromkeys(_CONV1D, _transposed),
    ),
    "starcoder": Architecture("GPTBigCodeForCausalLM", "gpt_bigcode", _GPT, configurations.starcoder),
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
        configurations.gptneox,
        {
            f"{_NEOX}.attention.query_key_value": lambda w, config: _per_head(
                w, config["num_attention_heads"]
            ),
        },
    ),
}
