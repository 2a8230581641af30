"""Graphs in onnx's notation, run as they are: both sides of a rewrite, and every value on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graph_passes.inference.dims import BATCH, PAST, SEQUENCE, evaluate, symbols
from graph_passes.inference.facts import dims

FOREIGN = sorted(Path(__file__).with_name("foreign").glob("*.onnx"))
"""Tiny decoders as other exporters write them."""

LENGTHS = ((2, 5, 3), (1, 1, 7), (3, 4, 0), (1, 1, 0))
"""Rows, tokens and past of the calls that are compared."""


def graph(body: str, inputs: str, outputs: str, opset: int = 23) -> ir.Model:
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    return ir.from_proto(onnx.parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }}"))


def unoptimised(model: ir.Model, *, everything: bool = False) -> ort.InferenceSession:
    """onnxruntime's own session, which changes nothing; with all values as outputs where asked."""
    proto = ir.to_proto(model)
    if everything:
        have = {output.name for output in proto.graph.output}
        names = [name for node in proto.graph.node for name in node.output if name and name not in have]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        del proto.graph.value_info[:]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options)


def calls(model: ir.Model, seed: int = 0) -> Iterator[tuple[Mapping[str, int], Mapping[str, np.ndarray]]]:
    """Lengths by symbol, and inputs of those lengths; the model is annotated."""
    rng = np.random.default_rng(seed)
    cached = any(PAST in symbols(size) for value in model.graph.inputs for size in dims(value) or ())
    for batch, sequence, past in LENGTHS:
        lengths = {BATCH: batch, SEQUENCE: sequence, PAST: past if cached else 0}
        feeds = {str(value.name): _feed(value, lengths, rng) for value in model.graph.inputs}
        yield lengths, feeds


def _feed(value: ir.Value, lengths: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = dims(value)
    assert shape is not None and value.dtype is not None
    known = {name: lengths.get(name, 16) for size in shape for name in symbols(size)}
    sizes = [evaluate(size, known) for size in shape]
    if value.dtype.is_floating_point():
        return rng.standard_normal(sizes).astype(value.dtype.numpy())
    if "mask" in str(value.name):
        return np.ones(sizes, value.dtype.numpy())
    if "position" in str(value.name):
        past = lengths[PAST]
        return np.broadcast_to(np.arange(past, past + sizes[1]), sizes).astype(value.dtype.numpy()).copy()
    return rng.integers(0, 61, sizes).astype(value.dtype.numpy())
