"""onnxruntime on CPU: contrib attention and norms, fused projections."""

from __future__ import annotations

from graph_passes import ORT_PIPELINE
from onnx_gpt.bundle.targets import BundleFacts

PIPELINE = ORT_PIPELINE


def files(facts: BundleFacts) -> dict[str, bytes]:
    return facts.common_files()
