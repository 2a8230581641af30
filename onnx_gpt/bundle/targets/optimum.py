"""Optimum: a Hugging Face folder that ``ORTModelForCausalLM`` loads and ``generate`` runs as any model.

It is onnxruntime's own graph but for one thing: ``generate`` pads batches on the left, so attention takes a bias.
"""

from __future__ import annotations

from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target

PASSES = "fold, attention{padding=any}, qkv, keep, norm, mlp, head, outline, clean"

CPU = Runtime("Optimum 0.1 on onnxruntime", caches=("float",))

TARGET = Target(
    name="optimum",
    models=(ModelFile("model", "model.onnx", PASSES, CPU),),
    files=BundleFacts.common_files,
)
