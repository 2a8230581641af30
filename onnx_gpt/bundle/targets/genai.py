"""onnxruntime-genai: the same graph, and the genai_config.json by which its runtime finds the graph's names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from exporter.errors import Exit, OnnxGptError, rejected, unsupported
from graph_passes import ORT_PIPELINE
from onnx_gpt.bundle.decoder_facts import DecoderFacts
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target


def files(facts: BundleFacts, providers: Sequence[str] = ()) -> dict[str, bytes]:
    """Small files.

    Args:
        providers: execution providers besides the CPU's, as genai_config.json calls them.

    Raises:
        OnnxGptError: ``target-needs-cache`` (exit 3), ``context-length-unknown`` (exit 2), ``config-invalid`` for an
            end that no token has, with which the runtime does not load the model.
    """
    if facts.decoder is None:
        raise unsupported(
            "target-needs-cache",
            "onnxruntime-genai runs decoders with a KV cache, and this graph has none",
            "use --target ort for a module without a cache",
        )
    if facts.decoder.context_length is None:
        raise OnnxGptError(
            "context-length-unknown",
            "onnxruntime-genai wants to know how many tokens the model may hold, and nothing says it",
            "say it with --context-length",
            exit=Exit.USAGE,
        )
    vocab_size = facts.decoder.vocab_size
    for end in facts.token_ids("eos_token_id"):
        if not 0 <= end < vocab_size:
            raise rejected(
                "config-invalid",
                f"eos_token_id is {end}, and the model has {vocab_size} tokens: onnxruntime-genai does not load it",
                "write the end token's id in generation_config.json, or in config.json where there is none",
            )
    config = json.dumps(genai_config(facts, facts.decoder, providers), indent=2).encode() + b"\n"
    return {**facts.common_files(), "genai_config.json": config}


def genai_config(facts: BundleFacts, decoder: DecoderFacts, providers: Sequence[str] = ()) -> dict[str, Any]:
    """The runtime's configuration. ``type`` is ``decoder``: a type such as ``gpt2`` implies one combined cache."""
    eos = facts.token_ids("eos_token_id") or [decoder.vocab_size - 1]
    pad = facts.token_ids("pad_token_id") or eos[:1]
    bos = facts.token_ids("bos_token_id") or eos[:1]
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": bos[0],
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "pad_token_id": pad[0],
            "vocab_size": decoder.vocab_size,
            "context_length": decoder.context_length,
            "decoder": {
                "filename": "model.onnx",
                "head_size": decoder.head_dim,
                "hidden_size": decoder.hidden_size,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "num_hidden_layers": decoder.layers,
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{provider: {}} for provider in providers],
                },
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.context_length,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


TARGET = Target(
    name="genai",
    models=(ModelFile("model", "model.onnx", ORT_PIPELINE, Runtime("onnxruntime-genai 0.18")),),
    files=files,
)
