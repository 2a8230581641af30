"""slice(f(x), rows) ⇒ f(slice(x, rows)) where f works on each token by itself.

Logits are wanted for the last tokens only, so everything after the last attention is computed for those
alone: in a prompt that saves the last layer's output projection and feed-forward as well as the head.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.matching import MICROSOFT, attribute, is_ints, make, same_shape
from graph_passes.outcome import Outcome

KIND = "fp"  # a product of fewer rows may run another kernel

ELEMENTWISE = frozenset(["Add", "Mul", "Sigmoid", "Relu", "Gelu", "QuickGelu", "FastGelu", "Tanh"])
LAST_AXIS = frozenset(["RMSNormalization", "LayerNormalization", "Split"])


def apply(model: ir.Model) -> Outcome:
    fired = sum([_hoist(model.graph, node) for node in list(model.graph) if node.op_type == "Slice"])
    if fired:
        model.graph.sort()
    return Outcome(fired)


def _hoist(graph: ir.Graph, node: ir.Node) -> bool:
    """Move one slice of ``[B, S, E]`` along S up to where tokens last met."""
    value, *bounds = node.inputs
    if value is None or value.shape is None or len(value.shape) != 3:
        return False
    if len(bounds) != 3 or not is_ints(bounds[2], 1):
        return False
    cone = _cone(node)
    if not any(member.op_type == "MatMul" for member in cone):
        return False
    frontier: dict[ir.Value, ir.Value] = {}
    kept = ir.SymbolicDim("kept")
    for member in cone:
        for i, source in enumerate(member.inputs):
            if source is None or source.is_initializer() or source.producer() in cone:
                continue
            if source not in frontier:
                frontier[source] = _sliced(graph, source, bounds, kept, f"{node.name}.{len(frontier)}")
            member.replace_input_with(i, frontier[source])
        for output in member.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([output.shape[0], kept, output.shape[2]])
    sliced = node.outputs[0]
    value.name, value.type, value.shape = sliced.name, sliced.type, sliced.shape
    ir.convenience.replace_all_uses_with(sliced, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _sliced(
    graph: ir.Graph, source: ir.Value, bounds: list[ir.Value | None], kept: ir.SymbolicDim, name: str
) -> ir.Value:
    new = make("Slice", [source, *bounds], name)
    assert source.shape is not None
    new.outputs[0].shape = ir.Shape([source.shape[0], kept, source.shape[2]])
    new.outputs[0].type = source.type
    graph.append(new)
    return new.outputs[0]


def _cone(root: ir.Node) -> dict[ir.Node, None]:
    """Nodes above ``root`` that work on each token by itself and feed nothing else."""
    cone: dict[ir.Node, None] = {}
    waiting = [value.producer() for value in root.inputs[:1] if value is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in cone or not _is_by_token(node):
            continue
        outputs = node.outputs
        if any(output.is_graph_output() for output in outputs):
            continue
        if all(user is root or user in cone for output in outputs for user, _ in output.uses()):
            cone[node] = None
            waiting.extend(value.producer() for value in node.inputs if value is not None)
    return cone


def _is_by_token(node: ir.Node) -> bool:
    """Whether row s of the outputs depends on row s of the inputs alone: ``[B, S, ·]`` values, constants of one row."""
    if node.domain not in ("", MICROSOFT):
        return False
    for value in node.inputs:
        if value is None or value.shape is None or not (len(value.shape) == 3 or value.is_initializer()):
            return False
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        return weight is not None and weight.is_initializer() and len(weight.shape or ()) == 2
    if node.op_type in LAST_AXIS:
        return bool(attribute(node, "axis", -1 if node.op_type != "Split" else 0) in (-1, 2))
    if node.op_type in ELEMENTWISE:
        constants = [value for value in node.inputs if value is not None and value.is_initializer()]
        rows = [value for value in node.inputs if value is not None and not value.is_initializer()]
        vectors = all(len(value.shape or ()) <= 1 for value in constants)
        return vectors and bool(rows) and all(same_shape(rows[0], value) for value in rows)
    return False
