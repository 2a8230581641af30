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
    weights = {str(v.name): v for v in model.graph.initializers.values() if _is_weight(v)}
    try:
        simplified, _ = simplify(_without_weights(model, weights))
    except Exception as error:  # its native part raises RuntimeError and what onnx raises
        raise OnnxGptError(
            "onnxsim-failed",
            f"onnxsim does not take this graph: {str(error)[:300]}",
            "leave it out of the pipeline",
            exit=Exit.UNSUPPORTED,
        ) from error
    before = model.graph.num_nodes()
    changed = ir.from_proto(simplified)
    _put_back(changed.graph, weights, [str(value.name) for value in model.graph.inputs])
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


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input():
        return False
    return isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL


def _without_weights(model: ir.Model, weights: dict[str, ir.Value]) -> onnx.ModelProto:
    """The model with weights as inputs; the graph itself stays as it is."""
    shadow = model.graph.clone()
    for name in weights:
        value = shadow.initializers.pop(name)
        value.const_value = None
        shadow.inputs.append(value)
    copy = ir.Model(shadow, ir_version=model.ir_version, functions=tuple(model.functions.values()))
    return ir.to_proto(copy)


def _put_back(graph: ir.Graph, weights: dict[str, ir.Value], inputs: list[str]) -> None:
    """Weights as initializers again, and the inputs in their order."""
    by_name = {str(value.name): value for value in graph.inputs}
    for name, old in weights.items():
        value = by_name.pop(name)
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = old.const_value
            graph.register_initializer(value)
    ordered = [by_name[name] for name in inputs]
    graph.inputs.clear()
    graph.inputs.extend(ordered)
