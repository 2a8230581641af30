"""A whole graph run in pieces, so that any value of it can be had: in float32, in float64, or moved by an ulp.

Weights are read for one piece at a time, and once for all calls. onnxruntime's optimisations are off, and codes are
multiplied without rounding the activations: what is seen is the graph's own arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from graph_passes.proof.evaluate import evaluate, evaluate_float64
from graph_passes.proof.keys import FLOATS
from graph_passes.proof.subgraph import NodeSnapshot, Subgraph

Arithmetic = Literal["float32", "float64", "moved"]
"""``moved`` is float32 with every weight one unit in the last place off: how far values go shows what noise is."""

Feeds = Mapping[str, np.ndarray]

NODES = 64
"""Nodes of a piece, at most."""
NBYTES = 64 << 20
"""Bytes of weights that a piece reads, where it has more than one node."""


def run(
    model: ir.Model,
    calls: Sequence[Feeds],
    wanted: Collection[str] | None = (),
    *,
    arithmetic: Arithmetic = "float32",
    given: Sequence[Feeds] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Values of a graph in several calls.

    Args:
        calls: the graph's inputs by name; those with a default may be left out.
        wanted: names of values to give beside the graph's outputs; None for all of them.
        given: values inside the graph, by name, that take the place of what it makes, in each call.

    Returns:
        Values by name, for each call.

    Raises:
        CannotEvaluate: naming what onnxruntime, or the float64 reference, says.
    """
    graph = model.graph
    outputs = {str(value.name) for value in graph.outputs}
    keep = outputs if wanted is None else outputs | set(wanted)
    live: list[dict[str, np.ndarray]] = [{**_defaults(graph), **call} for call in calls]
    for piece, dying in _pieces(model, keep, everything=wanted is None):
        weights = {value: _read(value, arithmetic) for value in piece.initializers()}
        for values, forced in zip(live, given or [{}] * len(calls), strict=True):
            feeds = {**weights, **{value: values[str(value.name)] for value in piece.inputs}}
            made = (v for snapshot in piece.nodes for v in snapshot.outputs if v.name in forced)
            fed = {value: forced[str(value.name)] for value in made}
            whole = dataclasses.replace(piece, inputs=(*piece.inputs, *fed))
            given_out = (evaluate_float64 if arithmetic == "float64" else evaluate)(whole, {**feeds, **fed})
            values |= {str(v.name): a for v, a in zip(piece.outputs, given_out, strict=True)}
            if wanted is not None:
                for name in dying:
                    values.pop(name, None)
    kept = [name for name in live[0] if wanted is None or name in keep]
    return [{name: values[name] for name in kept if name in values} for values in live]


def as_written(model: ir.Model) -> None:
    """Bring a graph to what its file says: in a file a value is its name, and nodes are in order."""
    graph = model.graph
    made = {str(value.name): value for node in graph for value in node.outputs if value.name}
    for node in graph:
        for i, value in enumerate(node.inputs):
            lost = value is not None and value.const_value is None and not value.is_graph_input()
            if value is not None and lost and value.name in made and made[str(value.name)] is not value:
                node.replace_input_with(i, made[str(value.name)])
    graph.sort()


def moved(array: np.ndarray) -> np.ndarray:
    """Every other float one unit in the last place up, the others one down."""
    if array.dtype.kind != "f":
        return array
    signs = np.where(np.arange(array.size).reshape(array.shape) % 2, 1, -1).astype(array.dtype)
    shifted: np.ndarray = array * (1 + np.finfo(array.dtype).eps * signs)
    return shifted


def _as_run(node: ir.Node) -> NodeSnapshot:
    """A node as it is run here: a product of codes in float32."""
    snapshot = NodeSnapshot.of(node)
    if node.op_type == "MatMulNBits":
        kept = tuple(a for a in snapshot.attributes if a.name != "accuracy_level")
        return dataclasses.replace(snapshot, attributes=kept)
    return snapshot


def making() -> Callable[[ir.Value], NodeSnapshot | None]:
    """The node that makes a value, the same object every time; None of an input or an initializer."""
    snapshots: dict[ir.Node, NodeSnapshot] = {}

    def made_by(value: ir.Value) -> NodeSnapshot | None:
        node = value.producer()
        if node is None:
            return None
        if node not in snapshots:
            snapshots[node] = _as_run(node)
        return snapshots[node]

    return made_by


def _defaults(graph: ir.Graph) -> dict[str, np.ndarray]:
    tensors = {str(value.name): value.const_value for value in graph.inputs}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}


def _read(value: ir.Value, arithmetic: Arithmetic) -> np.ndarray:
    assert value.const_value is not None, f"nothing makes {value.name}"
    array = value.const_value.numpy()
    return moved(array) if arithmetic == "moved" and value.dtype in FLOATS else array


def _pieces(
    model: ir.Model, keep: Collection[str], *, everything: bool
) -> Iterator[tuple[Subgraph, list[str]]]:
    """Pieces in order, each with the names of values that nobody needs after it."""
    groups = list(_groups(model.graph))
    last: dict[ir.Value, int] = {}
    for i, group in enumerate(groups):
        last.update((value, i) for snapshot in group for value in snapshot.reads())
    functions, imports = dict(model.functions), dict(model.graph.opset_imports)
    for i, group in enumerate(groups):
        made = [value for snapshot in group for value in snapshot.outputs if value.name]
        inside = set(made)
        inputs = dict.fromkeys(
            value
            for snapshot in group
            for value in snapshot.reads()
            if value not in inside and (value.producer() is not None or value.is_graph_input())
        )
        outputs = [v for v in made if everything or v.name in keep or last.get(v, -1) > i]
        dying = [str(v.name) for v in last if last[v] == i and v.name not in keep]
        yield Subgraph(tuple(inputs), tuple(group), tuple(outputs), imports, functions), dying


def _groups(graph: ir.Graph) -> Iterator[list[NodeSnapshot]]:
    group: list[NodeSnapshot] = []
    size = 0
    for node in graph:
        snapshot = _as_run(node)
        own = sum(
            v.const_value.nbytes
            for v in snapshot.reads()
            if v.const_value is not None and not v.is_graph_input()
        )
        if group and (len(group) >= NODES or size + own > NBYTES):
            yield group
            group, size = [], 0
        group.append(snapshot)
        size += own
    if group:
        yield group
