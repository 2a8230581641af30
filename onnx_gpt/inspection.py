"""Facts about a source, a bundle or an .onnx file, from headers alone: no weight is read and nothing is run."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.scheme import HALF, NAMES, TABLE, Floats, WeightOnly, scheme_of
from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder
from exporter.match import matched
from exporter.onnx_format.reader import read_file
from exporter.stored_weights import Stored
from exporter.weights import Weight
from graph_passes.lint import lint


def inspect(source: str) -> dict[str, Any]:
    """What is known of a model without running it, as plain values for JSON.

    Raises:
        OnnxGptError: where the source cannot be opened, or its weights do not fit its configuration.
    """
    graph = _graph_of(Path(source))
    if graph is not None:
        return _graph_facts(graph)
    opened = sources.load(source)
    if not isinstance(opened, Checkpoint):
        return {"source": source, "kind": "module"}
    return _checkpoint_facts(source, opened)


def _graph_of(path: Path) -> Path | None:
    """The model file of a path: itself, or a bundle's, wherever its runtime has it."""
    if path.suffix == ".onnx" and path.is_file():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(
        [*path.glob("model*.onnx"), *path.glob("onnx/model*.onnx")],
        key=lambda file: file.name != "model.onnx",
    )
    return next(iter(found or sorted(path.glob("*.onnx"))), None)


def _checkpoint_facts(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    decoder, _ = matched(checkpoint)
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
        "bundle_bytes": bundle_bytes(decoder, checkpoint.weights),
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


def bundle_bytes(decoder: Decoder, weights: Mapping[str, Weight]) -> dict[str, int]:
    """Bytes of weights that a bundle would have, by scheme; ``keep`` where the source is quantized.

    Args:
        weights: those of the source, as it stores them.

    What a scheme rounds takes its grid's bits, norms and biases stay as the graph computes; the tables of angles are
    counted, the graph itself (100 to 300 kB) is not. A table that is tied is stored once.
    """
    schemes = {"none": Floats(), **{name: scheme_of(name) for name in NAMES}}
    sizes = {
        name: _scheme_bytes(decoder, scheme, 2 if name in HALF else 4)
        for name, scheme in schemes.items()
        if isinstance(scheme, WeightOnly | Floats)
    }
    if any(weight.format is not None for weight in weights.values()):
        kept = sum(_kept_bytes(weight) for weight in weights.values())
        sizes["keep"] = kept + _angles(decoder) * 4
    return {name: int(size) for name, size in sizes.items()}


def _scheme_bytes(decoder: Decoder, scheme: WeightOnly | Floats, floats: int) -> float:
    total = float(_angles(decoder) * floats)
    for role, part in decoder.parts():
        count, grid = int(np.prod(part.shape)), None
        is_table = role in ("embedding.weight", "head.weight")
        if isinstance(scheme, WeightOnly) and len(part.shape) == 2 and role != "positions.weight":
            grid = scheme.grid_of(TABLE if is_table else role.removesuffix(".weight"))
        total += count * (grid.bits_per_weight / 8 if grid is not None else floats)
    return total


def _angles(decoder: Decoder) -> int:
    """Numbers in the tables of positions: of cosines and sines for each kind of rotation, and of biases."""
    ropes = {layer.attention.rope for layer in decoder.layers if layer.attention.rope is not None}
    biases = {layer.attention.alibi for layer in decoder.layers if layer.attention.alibi is not None}
    rows = sum(rope.rotated for rope in ropes) + sum(len(bias.slopes) for bias in biases)
    return decoder.context_length * rows


def _kept_bytes(weight: Weight) -> float:
    """Bytes of a weight with the codes, scales and minima that its source has."""
    count, format = int(np.prod(weight.shape)), weight.format
    if format is None:
        return 4 * count
    numbers = 2 if format.has_minimum else 1
    return count * (format.bits + numbers * np.finfo(format.scale_dtype).bits / format.block) / 8


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
