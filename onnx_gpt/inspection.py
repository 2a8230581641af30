"""Facts about a source, a bundle or an .onnx file, from headers alone: no weight is read and nothing is run."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder
from exporter.families import describe, family_of
from exporter.match import match_weights
from exporter.onnx_format.reader import read_file
from exporter.weights import Stored
from graph_passes.lint import lint


def inspect(source: str) -> dict[str, Any]:
    """What is known of a model without running it, as plain values for JSON.

    Raises:
        OnnxGptError: where the source cannot be opened, or its weights do not fit its configuration.
    """
    path = Path(source)
    graph = path / "model.onnx" if path.is_dir() else path
    if graph.suffix == ".onnx" and graph.is_file():
        return _graph_facts(graph)
    opened = sources.load(source)
    if not isinstance(opened, Checkpoint):
        return {"source": source, "kind": "module"}
    return _checkpoint_facts(source, opened)


def _checkpoint_facts(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    decoder = describe(checkpoint)
    match_weights(decoder, checkpoint.weights, getattr(family_of(checkpoint), "IGNORED", ()))
    parameters = {part.name: int(np.prod(part.stored_shape)) for _, part in decoder.parts()}
    formats = collections.Counter(_stored_as(weight) for weight in checkpoint.weights.values())
    return {
        "source": source,
        "kind": "checkpoint",
        "family": decoder.family,
        "architecture": checkpoint.architecture,
        "parameters": sum(parameters.values()),
        "layers": len(decoder.layers),
        "hidden_size": decoder.hidden_size,
        **_attention_facts(decoder),
        "vocab_size": decoder.vocab_size,
        "context_length": decoder.context_length,
        "tied_embedding": decoder.tied,
        "tensors": dict(formats.most_common()),
        "files": sorted(checkpoint.files),
        "kv_cache_bytes_per_token": sum(
            2 * 4 * layer.attention.kv_heads * layer.attention.head_dim for layer in decoder.layers
        ),
    }


def _attention_facts(decoder: Decoder) -> dict[str, Any]:
    attention = decoder.layers[0].attention
    windows = collections.Counter(str(layer.attention.window or "all") for layer in decoder.layers)
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "attention_window": dict(windows),
    }


def _stored_as(weight: Any) -> str:
    if isinstance(weight, Stored):
        return weight.dtype
    return f"{weight.format.bits} bits, blocks of {weight.format.block}" if weight.format else "float"


def _graph_facts(path: Path) -> dict[str, Any]:
    model = read_file(path)
    ops = collections.Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph
    )
    return {
        "source": str(path),
        "kind": "graph",
        "producer": model.producer_name,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "nodes": sum(ops.values()),
        "ops": dict(ops.most_common()),
        "inputs": {value.name: _typed(value) for value in model.graph.inputs},
        "outputs": {value.name: _typed(value) for value in model.graph.outputs},
        "weights_bytes": sum(
            value.const_value.nbytes
            for value in model.graph.initializers.values()
            if value.const_value is not None
        ),
        "findings": [str(finding) for finding in lint(model)],
    }


def _typed(value: ir.Value) -> str:
    dims = ", ".join(str(d) for d in value.shape) if value.shape is not None else "…"
    return f"{value.dtype.name.lower() if value.dtype else '?'}[{dims}]"
