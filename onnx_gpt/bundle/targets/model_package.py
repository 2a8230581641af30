"""onnxruntime's model package: one folder with a variant for each kind of device, of which it opens the one that fits.

manifest.json names one component, ``model``, and its variants, each a folder with an execution provider. A session gets
the first variant that is for its first provider. Source: microsoft/onnxruntime, model_package/README.md and
onnxruntime/core/session/model_package/README.md.

Every variant is a whole onnxruntime-genai folder too, with its own tokenizer, so that one can be opened alone, and by
runtimes that do not know packages.
"""

from __future__ import annotations

from typing import Any

from graph_passes import ORT_PIPELINE
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target, Weights, genai, json_bytes

SCHEMA = "1.0"
COMPONENT = "model"
"""Of which there may be any number; onnxruntime-genai takes packages that have one."""

MODELS = (
    ModelFile("cpu", "cpu/model.onnx", ORT_PIPELINE, Runtime("onnxruntime 1.32")),
    ModelFile(
        "webgpu",
        "webgpu/model.onnx",
        ORT_PIPELINE,
        Runtime("onnxruntime 1.32 on WebGPU", caches=("float",)),
        weights=Weights("int4", block_size=32, table_bits=8),
    ),
)
DEVICES = {"cpu": ("CPUExecutionProvider", "cpu"), "webgpu": ("WebGpuExecutionProvider", "gpu")}
"""Execution provider and device of each variant."""
GENAI_PROVIDERS = {"cpu": (), "webgpu": ("webgpu",)}
"""The same as genai_config.json calls them; none for the CPU."""


def files(facts: BundleFacts) -> dict[str, bytes]:
    """The manifest of the variants that are there, and each variant's own small files."""
    found = {"manifest.json": json_bytes(manifest(facts))}
    for name in _variants(facts):
        own = genai.files(facts, GENAI_PROVIDERS[name])
        found |= {f"{name}/{file}": content for file, content in own.items()}
    return found


def manifest(facts: BundleFacts) -> dict[str, Any]:
    """manifest.json: which variant is for which execution provider, and which file a session opens there."""
    variants = {}
    for name in _variants(facts):
        provider, device = DEVICES[name]
        opened = {"ort": {"model_file": "model.onnx"}}
        variants[name] = {"ep": provider, "device": device, "executor_info": opened}
    return {"schema_version": SCHEMA, "components": {COMPONENT: {"variants": variants}}}


def _variants(facts: BundleFacts) -> list[str]:
    """Those that the job asks for, in the order in which onnxruntime tries them."""
    return [model.name for model in MODELS if model.path in facts.data_files]


TARGET = Target(name="model-package", models=MODELS, files=files)
