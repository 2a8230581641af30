"""transformers.js 4 on onnxruntime-web: the folder of a Hugging Face repository, a model for each kind of device.

| model | device | weights | why |
|---|---|---|---|
| ``onnx/model.onnx`` | WebGPU, Node | float32 | the reference; what transformers.js takes by default |
| ``onnx/model_quantized.onnx`` | WASM | ``dynamic8`` | integer kernels: MatMulNBits takes 15 times as long there |
| ``onnx/model_q4.onnx`` | WebGPU | ``int4``, blocks of 32 | everything stays on the GPU |
| ``onnx/model_q4f16.onnx`` | WebGPU, shader-f16 | the same, float16 | half the memory for activations and cache |

transformers.js pads batches on the left and lets the cache grow. On a GPU GroupQueryAttention takes a bias for that
(the standard Attention would run on the CPU); in WASM the standard Attention is faster, eleven times so in a prompt.
The figures are in docs/targets.md.
"""

from __future__ import annotations

import json
from typing import Any

from exporter.errors import unsupported
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target, Weights, json_bytes

WEBGPU = Runtime("onnxruntime-web 1.31 on WebGPU", caches=("float",))
WASM = Runtime(
    "onnxruntime-web 1.31 on WASM",
    lacks=frozenset(["com.microsoft::MatMulNBits", "com.microsoft::GatherBlockQuantized"]),
    caches=("float",),
)
GPU_PIPELINE = "fold, attention{padding=any}, qkv, keep, norm, mlp, head, outline, required, clean"
GPU_FLOAT_PIPELINE = GPU_PIPELINE.replace("head,", "head, gemm,")
"""A table of codes is multiplied by MatMulNBits; a float one by Gemm, since a GPU has no FusedMatMul."""
WASM_PIPELINE = "fold, keep, norm, mlp, head, outline, required, clean"
DATA_LIMIT = 2_000_000_000
"""Bytes of one file of weights: a browser's ArrayBuffer holds little more than 2 GB."""

_TYPES = {
    "n_layer": "gpt2 gptj jais codegen gpt_bigcode bloom",
    "num_layers": "gpt_neo exaone",
    "n_layers": "mpt",
    "num_transformer_layers": "openelm",
    "num_hidden_layers": """
        gpt_neox stablelm opt falcon modernbert-decoder gpt_oss llama llama4_text nanochat apertus arcee afmoe smollm3
        olmo olmo2 olmo3 mobilellm granite cohere cohere2 mistral starcoder2 qwen2 qwen2_moe qwen3_moe phi phi3 qwen3
        solar_open gemma gemma2 vaultgemma gemma3_text glm helium ernie4_5 hunyuan_v1_dense ministral ministral3
        mistral4 youtu deepseek_v3 hrm_text
    """,
}
LAYER_KEYS = {kind: key for key, kinds in _TYPES.items() for kind in kinds.split()}
"""Where transformers.js finds the number of layers, by model_type; types with other kinds of state are left out."""
PLAIN = "llama"
"""The type that is written in the place of one that is not among them: its cache is keys and values of each layer."""


def _model(name: str, suffix: str, pipeline: str, runtime: Runtime, weights: Weights) -> ModelFile:
    return ModelFile(
        name=name,
        path=f"onnx/model{suffix}.onnx",
        pipeline=pipeline,
        runtime=runtime,
        weights=weights,
        data_suffix="_data",
        data_limit=DATA_LIMIT,
    )


def files(facts: BundleFacts) -> dict[str, bytes]:
    """Small files. The chat template goes into tokenizer_config.json, the only place where transformers.js looks."""
    if facts.decoder is None:
        raise unsupported(
            "target-needs-cache",
            "transformers.js runs decoders with a KV cache, and this graph has none",
            "use --target ort for a module without a cache",
        )
    given = dict(facts.files)
    template = given.pop("chat_template.jinja", None)
    tokens: dict[str, Any] = json.loads(given.get("tokenizer_config.json", b"{}"))
    if template is not None:
        tokens["chat_template"] = template.decode("utf-8")
    if tokens or "tokenizer.json" in given:  # alone, the file would speak of a tokenizer that is not there
        given["tokenizer_config.json"] = json_bytes(tokens)
    given.setdefault("generation_config.json", json_bytes(_generation(facts)))
    return {"config.json": json_bytes(_config(facts)), **given}


def _generation(facts: BundleFacts) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: facts.config[key] for key in keys if facts.config.get(key) is not None}


def _config(facts: BundleFacts) -> dict[str, Any]:
    data = {path.rpartition("/")[2]: count for path, count in facts.data_files.items()}
    own = {
        "use_external_data_format": data,
        "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"},
    }
    # transformers.js takes multi_query for a cache that has keys and values in one tensor; this graph has them apart.
    config = {key: value for key, value in facts.config.items() if key != "multi_query"}
    if facts.decoder is not None:
        kind = config.get("model_type")
        kind = kind if kind in LAYER_KEYS else PLAIN
        config |= {"model_type": kind, LAYER_KEYS[kind]: facts.decoder.layers}
    return {**config, "transformers.js_config": own}


TARGET = Target(
    name="web",
    models=(
        _model("fp32", "", GPU_FLOAT_PIPELINE, WEBGPU, Weights("none")),
        _model("q8", "_quantized", WASM_PIPELINE, WASM, Weights("dynamic8")),
        _model("q4", "_q4", GPU_PIPELINE, WEBGPU, Weights("int4", block_size=32, table_bits=8)),
        _model("q4f16", "_q4f16", GPU_PIPELINE, WEBGPU, Weights("q4f16", block_size=32, table_bits=8)),
    ),
    files=files,
)
