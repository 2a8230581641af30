"""Work grows with layers and not faster, and nothing is left over at any depth."""

from __future__ import annotations

import collections

from benchmarks.spelled_llama import Shape, spelled_llama
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.exporting import CANONICAL_PIPELINE

PIPELINE = f"{CANONICAL_PIPELINE.replace('{context}', '{context_length=64}')}, {ORT_PIPELINE}"


def _optimized(layers: int) -> tuple[int, collections.Counter[str]]:
    """Rules tried, and the ops that are left."""
    model = spelled_llama(Shape(layers, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=50))
    reports = run_pipeline(model, PIPELINE, verify=False)
    return sum(report.tried for report in reports), collections.Counter(node.op_type for node in model.graph)


def test_attempts_grow_no_faster_than_layers() -> None:
    (few, _), (many, ops) = _optimized(12), _optimized(48)
    assert 0 < many <= 4.2 * few
    assert ops["GroupQueryAttention"] == 48
    assert ops["SkipSimplifiedLayerNormalization"] == 2 * 48
    assert ops["SwiGLU"] == 48
    assert ops["MatMul"] == 4 * 48 + 1  # the head is not tied
    assert ops.total() < 8 * 48 + 30
