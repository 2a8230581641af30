"""What every pass leaves true. A pass that breaks one is a defect of the pass, not of the user's model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import onnx_ir as ir

from graph_passes.matching import SMALL

EAGER = 1 << 20
"""Bytes of constants in memory that one pass may add; more would be a weight."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What is compared after a pass."""

    nodes: int
    inputs: tuple[tuple[object, ...], ...]
    outputs: tuple[tuple[object, ...], ...]
    tensors: dict[ir.Value, ir.TensorProtocol | None]
    digests: dict[ir.Value, bytes]

    @classmethod
    def of(cls, model: ir.Model) -> Snapshot:
        graph = model.graph
        return cls(
            graph.num_nodes(),
            tuple(map(_declared, graph.inputs)),
            tuple(map(_declared, graph.outputs)),
            {value: value.const_value for value in graph.initializers.values()},
            {value: digest for value in graph.initializers.values() if (digest := _digest(value))},
        )


def check(model: ir.Model, before: Snapshot, name: str, *, interface: bool = False) -> None:
    """Compare a model with what it was before the pass ``name``.

    The graph is in topological order and uses no value that nothing makes; names are unique; inputs and
    outputs keep names, types and shapes; initializers that were there keep their tensors and what is in them,
    and new ones are small or lazy.

    Args:
        interface: the pass gives the graph other inputs and outputs, and tables of positions.

    Raises:
        AssertionError: naming the pass and the invariant.
    """
    graph = model.graph

    def hold(condition: bool, what: str) -> None:
        if not condition:
            raise AssertionError(f"pass {name!r}: {what}")

    hold(interface or tuple(map(_declared, graph.inputs)) == before.inputs, "changed the graph's inputs")
    hold(interface or tuple(map(_declared, graph.outputs)) == before.outputs, "changed the graph's outputs")
    _check_order(graph, hold)
    added = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if value in before.tensors:
            hold(tensor is before.tensors[value], f"changed the tensor of {value.name}")
            hold(_digest(value) == before.digests.get(value, b""), f"changed what is in {value.name}")
        elif tensor is not None and not isinstance(tensor, ir.LazyTensor | ir.ExternalTensor):
            added += tensor.nbytes
    hold(interface or added <= EAGER, f"added {added} bytes of constants that are held in memory")


def _check_order(graph: ir.Graph, hold: Callable[[bool, str], None]) -> None:
    known = {*graph.inputs, *graph.initializers.values()}
    names = {value.name for value in known}
    for node in graph:
        for value in node.inputs:
            hold(
                value is None or value in known, f"{node.name} uses {value and value.name} before it is made"
            )
        for value in node.outputs:
            if value.name == "":
                continue
            hold(value.name is None or value.name not in names, f"two values are called {value.name}")
            names.add(value.name)
            known.add(value)
    for value in graph.outputs:
        hold(value in known, f"nothing makes the output {value.name}")


def _digest(value: ir.Value) -> bytes:
    """Of what is in a small tensor in memory; empty for a weight, which is told by its identity."""
    tensor = value.const_value
    if tensor is None or isinstance(tensor, ir.LazyTensor | ir.ExternalTensor) or tensor.nbytes > SMALL:
        return b""
    return hashlib.sha256(tensor.tobytes()).digest()


def _declared(value: ir.Value) -> tuple[object, ...]:
    shape = None if value.shape is None else tuple(map(str, value.shape))
    return value.name, str(value.type), shape
