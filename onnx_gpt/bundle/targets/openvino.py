"""OpenVINO's reader of ONNX: onnxruntime's fused attention and norms, weights of 4 and 8 bits in standard operators.

It reads GroupQueryAttention and MatMulNBits, but no functions of a model, and looks up a table of codes only where its
scales are constants; blocks behind a DequantizeLinear become its own compressed weights.
"""

from __future__ import annotations

from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target

PASSES = "fold, attention, qkv, keep, norm, mlp, head, clean"
"""That of onnxruntime without ``outline``, which makes functions."""

CPU = Runtime(
    "OpenVINO 2026.4",
    lacks=frozenset({"com.microsoft::GatherBlockQuantized"}),
    caches=("float",),
    qdq=True,
)

TARGET = Target(
    name="openvino",
    models=(ModelFile("model", "model.onnx", PASSES, CPU),),
    files=BundleFacts.common_files,
)
