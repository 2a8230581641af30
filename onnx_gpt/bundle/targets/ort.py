"""onnxruntime on CPU: contrib attention and norms, fused projections."""

from __future__ import annotations

from graph_passes import ORT_PIPELINE
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target

CPU = Runtime("onnxruntime 1.32 on CPU", pieces=True)

TARGET = Target(
    name="ort",
    models=(ModelFile("model", "model.onnx", ORT_PIPELINE, CPU),),
    files=BundleFacts.common_files,
)
