"""onnxsim(graph) ⇒ what onnx-simplifier makes of it; weights stay outside and are not read.

An optional pass of others (github.com/daquexian/onnx-simplifier), checked as ours are. It sees a copy in which every
weight is an input of known shape: it can neither fold nor fuse one, and what it takes in memory follows the graph.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from exporter.errors import Exit, OnnxGptError
from graph_passes.matching import SMALL
from graph_passes.outcome import Outcome

KIND = "fp"


def apply(model: ir.Model) -> Outcome:
    """Run it.

    Raises:
        OnnxGptError: ``onnxsim-missing`` (exit 8) where it is not installed; ``onnxsim-failed`` (exit 3).
    """
    simplify = _onnxsim()
    held = {str(v.name): v for v in model.graph.initializers.values() if _is_kept_out(v)}
    try:
        simplified, _ = simplify(_without(model, held))
    except Exception as error:  # its native part raises RuntimeError and what onnx raises
        raise OnnxGptError(
            "onnxsim-failed",
            f"onnxsim does not take this graph: {str(error)[:300]}",
            "leave it out of the pipeline",
            exit=Exit.UNSUPPORTED,
        ) from error
    before = model.graph.num_nodes()
    changed = ir.from_proto(simplified)
    _put_back(changed.graph, held, [str(value.name) for value in model.graph.inputs])
    model.graph = changed.graph
    return Outcome(max(0, before - model.graph.num_nodes()))


def _onnxsim() -> Any:
    try:
        from onnxsim import simplify
    except ImportError as error:
        raise OnnxGptError(
            "onnxsim-missing",
            "the pass onnxsim needs onnx-simplifier, which is not installed",
            "pip install 'onnx-gpt[onnxsim]'",
            exit=Exit.ENVIRONMENT,
        ) from error
    return simplify


def _is_kept_out(value: ir.Value) -> bool:
    """Weights, and the defaults of inputs that need not be fed, which it would take for constants."""
    tensor = value.const_value
    if tensor is None:
        return False
    return value.is_graph_input() or isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL


def _without(model: ir.Model, held: dict[str, ir.Value]) -> onnx.ModelProto:
    """The model with some initializers as inputs; the graph itself stays as it is."""
    shadow = model.graph.clone()
    for name in held:
        value = shadow.initializers.pop(name)
        value.const_value = None
        if not value.is_graph_input():
            shadow.inputs.append(value)
    copy = ir.Model(shadow, ir_version=model.ir_version, functions=tuple(model.functions.values()))
    return ir.to_proto(copy)


def _put_back(graph: ir.Graph, held: dict[str, ir.Value], inputs: list[str]) -> None:
    """Initializers that were kept out, and the inputs in their order."""
    by_name = {str(value.name): value for value in graph.inputs}
    graph.inputs.clear()
    graph.inputs.extend(by_name[name] for name in inputs)
    for name, old in held.items():
        value = by_name[name]
        if value.uses() or name in inputs:
            value.const_value = old.const_value
            graph.register_initializer(value)
