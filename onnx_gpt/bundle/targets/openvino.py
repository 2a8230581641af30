"""OpenVINO's reader of ONNX: onnxruntime's norms, products and lookups of codes, and attention in its parts.

It reads GroupQueryAttention too, for one row at a time, and computes it in pieces. Where a cache is appended to by
Concat it fuses the whole attention, cache and all, once the cache is its own state (docs/targets.md). It reads no
functions of a model, and looks up a table of codes only where its scales are constants.
"""

from __future__ import annotations

from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target

PASSES = "fold, keep, norm, mlp, head, repeat, clean"

CPU = Runtime("OpenVINO 2026.4", caches=("float",), constant_scales=True)

TARGET = Target(
    name="openvino",
    models=(ModelFile("model", "model.onnx", PASSES, CPU),),
    files=BundleFacts.common_files,
)
