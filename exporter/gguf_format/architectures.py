"""llama.cpp's architectures, one entry each: the Hugging Face class, its configuration, its tensors.

Tensor names are not listed twice: an entry names its Hugging Face tensors, and the gguf library's table,
which the converters use, says what each of them is called in the file. What a converter does to values
(llama.cpp's ``convert_hf_to_gguf.py``) is undone by the entry's `undo`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from exporter.gguf_format import configurations, gpt_configurations
from exporter.gguf_format.dims import Config
from exporter.gguf_format.keys import Keys
from exporter.gguf_format.reader import Header
from exporter.gguf_format.undoing import Undo, by_group, by_head, pairs_apart, turned, without_one
from exporter.gguf_format.xielu import xielu
from exporter.weights import Weight


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
        from_keys: tensors of Hugging Face's that the file has among its keys, out of its header and the configuration.
    """

    class_name: str
    model_type: str
    tensors: tuple[str, ...]
    config: Callable[[Keys], Config]
    undo: Mapping[str, Undo] = dataclasses.field(default_factory=dict)
    from_keys: Callable[[Header, Mapping[str, Any]], Mapping[str, Weight]] = lambda header, config: {}


_LAYER = "model.layers.{}"
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_NORMS = (f"{_LAYER}.input_layernorm", f"{_LAYER}.post_attention_layernorm")
_ATTENTION = tuple(f"{_LAYER}.self_attn.{name}_proj" for name in "qkvo")
_GATED = tuple(f"{_LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down"))
_PACKED = tuple(f"{_LAYER}.mlp.{name}_proj" for name in ("gate_up", "down"))
_HEAD_NORMS = tuple(f"{_LAYER}.self_attn.{name}_norm" for name in "qk")
_GEMMA2_NORMS = (
    *_NORMS,
    f"{_LAYER}.pre_feedforward_layernorm",
    f"{_LAYER}.post_feedforward_layernorm",
    "model.norm",
)
_GEMMA3_NORMS = (*_GEMMA2_NORMS, *_HEAD_NORMS)
_BEHIND = tuple(f"{_LAYER}.post_{block}_layernorm" for block in ("attention", "feedforward"))
_BLOCK = "transformer.h.{}"
_CONV1D = tuple(f"{_BLOCK}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
_GPT = (
    *("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
    *(f"{_BLOCK}.ln_1", f"{_BLOCK}.ln_2", *_CONV1D),
)
_NEOX = "gpt_neox.layers.{}"
_FALCON = (
    *("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
    *(f"{_BLOCK}.self_attention.{name}" for name in ("query_key_value", "dense")),
    *(f"{_BLOCK}.mlp.{name}" for name in ("dense_h_to_4h", "dense_4h_to_h")),
)
_MPT = "transformer.blocks.{}"
_EXAONE = (
    *("transformer.wte", "transformer.ln_f", "lm_head", f"{_BLOCK}.ln_1", f"{_BLOCK}.ln_2"),
    *(f"{_BLOCK}.attn.attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{_BLOCK}.mlp.{name}" for name in ("c_fc_0", "c_fc_1", "c_proj")),
)
_COHERE = (*_OUTSIDE[:2], f"{_LAYER}.input_layernorm", *_ATTENTION, *_GATED)
_LLAMA = (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED)
_PAIRS_APART: Mapping[str, Undo] = {
    f"{_LAYER}.self_attn.q_proj": pairs_apart("num_attention_heads"),
    f"{_LAYER}.self_attn.k_proj": pairs_apart("num_key_value_heads"),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "llama", _LLAMA, configurations.llama, _PAIRS_APART),
    "granite": Architecture("GraniteForCausalLM", "granite", _LLAMA, configurations.granite, _PAIRS_APART),
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
        {f"{name}.weight": without_one for name in (*_NORMS, "model.norm")},
    ),
    "glm4": Architecture(
        "Glm4ForCausalLM",
        "glm4",
        (
            *_OUTSIDE,
            *_NORMS,
            *(f"{_LAYER}.post_{block}_layernorm" for block in ("self_attn", "mlp")),
            *_ATTENTION,
            *_PACKED,
        ),
        configurations.glm,
    ),
    "exaone": Architecture("ExaoneForCausalLM", "exaone", _EXAONE, configurations.llama),
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
    "stablelm": Architecture("StableLmForCausalLM", "stablelm", _LLAMA, configurations.stablelm),
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
    "arcee": Architecture(
        "ArceeForCausalLM",
        "arcee",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_GATED[1:]),
        configurations.arcee,
        _PAIRS_APART,
    ),
    "apertus": Architecture(
        "ApertusForCausalLM",
        "apertus",
        (
            *_OUTSIDE,
            *(f"{_LAYER}.{block}_layernorm" for block in ("attention", "feedforward")),
            *_HEAD_NORMS,
            *_ATTENTION,
            *_GATED[1:],
        ),
        configurations.apertus,
        from_keys=xielu,
    ),
    "smollm3": Architecture("SmolLM3ForCausalLM", "smollm3", _LLAMA, configurations.smollm3, _PAIRS_APART),
    "seed_oss": Architecture("SeedOssForCausalLM", "seed_oss", _LLAMA, configurations.seed_oss),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", "ernie4_5", _LLAMA, configurations.ernie4_5),
    "hunyuan-dense": Architecture(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        (*_LLAMA, *(f"{_LAYER}.self_attn.{name}_layernorm" for name in ("query", "key"))),
        configurations.hunyuan_dense,
    ),
    "mistral3": Architecture(
        "Ministral3ForCausalLM", "ministral3", _LLAMA, configurations.ministral3, _PAIRS_APART
    ),
    "command-r": Architecture("CohereForCausalLM", "cohere", _COHERE, configurations.command_r),
    "cohere2": Architecture("Cohere2ForCausalLM", "cohere2", _COHERE, configurations.cohere2),
    "chatglm": Architecture(
        "GlmForCausalLM",
        "glm",
        (*_OUTSIDE, *_NORMS, *_ATTENTION, *_PACKED),
        configurations.glm,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", _LLAMA, configurations.qwen2),
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
        dict.fromkeys((*_NORMS, "model.norm"), without_one),
    ),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        (_OUTSIDE[0], *_GEMMA2_NORMS, *_ATTENTION, *_GATED),
        configurations.gemma2,
        dict.fromkeys(_GEMMA2_NORMS, without_one),
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        (*_OUTSIDE, *_GEMMA3_NORMS, *_ATTENTION, *_GATED),
        configurations.gemma3,
        dict.fromkeys(_GEMMA3_NORMS, without_one),
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
        gpt_configurations.gpt2,
        dict.fromkeys(_CONV1D, turned),
    ),
    "starcoder": Architecture("GPTBigCodeForCausalLM", "gpt_bigcode", _GPT, gpt_configurations.starcoder),
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
        gpt_configurations.gptneox,
        {f"{_NEOX}.attention.query_key_value": by_head("num_attention_heads")},
    ),
    "falcon": Architecture(
        "FalconForCausalLM",
        "falcon",
        (*_FALCON, f"{_BLOCK}.input_layernorm"),
        gpt_configurations.falcon,
        {f"{_BLOCK}.self_attention.query_key_value": by_group},
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        "bloom",
        (
            *_FALCON,
            "transformer.word_embeddings_layernorm",
            *(f"{_BLOCK}.{name}" for name in ("input_layernorm", "post_attention_layernorm")),
        ),
        gpt_configurations.bloom,
        {f"{_BLOCK}.self_attention.query_key_value": by_head("n_head")},
    ),
    "mpt": Architecture(
        "MptForCausalLM",
        "mpt",
        (
            *("transformer.wte", "transformer.norm_f", "lm_head"),
            *(f"{_MPT}.{name}" for name in ("norm_1", "norm_2", "attn.Wqkv", "attn.out_proj")),
            *(f"{_MPT}.ffn.{name}_proj" for name in ("up", "down")),
        ),
        gpt_configurations.mpt,
    ),
}

OTHERWISE: Mapping[str, tuple[Callable[[Header], bool], Architecture]] = {
    "mistral3": (
        configurations.has_no_yarn,
        Architecture("MistralForCausalLM", "mistral", _LLAMA, configurations.mistral, _PAIRS_APART),
    ),
    "olmo2": (
        configurations.has_window,
        dataclasses.replace(
            ARCHITECTURES["olmo2"],
            class_name="Olmo3ForCausalLM",
            model_type="olmo3",
            config=configurations.olmo3,
        ),
    ),
    "falcon": (
        gpt_configurations.has_two_norms,
        dataclasses.replace(
            ARCHITECTURES["falcon"], tensors=(*_FALCON, f"{_BLOCK}.ln_attn", f"{_BLOCK}.ln_mlp")
        ),
    ),
}
"""Architectures that are two of Hugging Face's: what is true of a file of the second, and the entry of that."""
