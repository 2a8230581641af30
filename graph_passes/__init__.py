"""Passes that lower a canonical graph to what a runtime runs fastest. No weight is read here."""

from graph_passes.pipeline import PassReport, Step, parse, passes_by_name, run_pipeline, to_text

ORT_PIPELINE = "fold, attention, qkv, keep, norm, mlp, head, outline, clean"
"""From the canonical graph to onnxruntime's CPU kernels."""

__all__ = ["ORT_PIPELINE", "PassReport", "Step", "parse", "passes_by_name", "run_pipeline", "to_text"]
