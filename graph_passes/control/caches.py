"""Which input and output of a graph is whose cache, told by where they flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graph_passes.control.interface import Interface
from graph_passes.matching import MICROSOFT

MOVES = frozenset(
    """
    Cast Concat Expand Identity Mul Reshape ScatterElements ScatterND Slice Squeeze TensorScatter Tile Transpose
    Unsqueeze
    """.split()  # noqa: SIM905 (a table)
)
"""What may lie between a cache and the product that reads it."""

ATTENTIONS: Mapping[tuple[str, str], Mapping[int, tuple[int, int | None]]] = {
    ("", "Attention"): {4: (0, 1), 5: (1, 2), 1: (0, None), 2: (1, None)},
    (MICROSOFT, "GroupQueryAttention"): {3: (0, 1), 4: (1, 2)},
    (MICROSOFT, "MultiHeadAttention"): {6: (0, 1), 7: (1, 2), 1: (0, None), 2: (1, None)},
}
"""For the inputs of attention operators: 0 for keys and 1 for values, and the output that is the new cache."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys or values of one layer.

    Attributes:
        which: ``key`` or ``value``.
        past: graph input.
        present: graph output.
    """

    layer: int
    which: str
    past: ir.Value
    present: ir.Value

    @property
    def names(self) -> tuple[str, str]:
        """What the contract calls past and present."""
        return f"past_key_values.{self.layer}.{self.which}", f"present.{self.layer}.{self.which}"


def caches_of(graph: ir.Graph, interface: Interface) -> Sequence[Cache] | str:
    """All caches, in the order of layers, keys first; or why they are not those of a decoder."""
    order = {node: i for i, node in enumerate(graph)}
    found: tuple[list[tuple[int, ir.Value, ir.Value]], ...] = ([], [])
    for past in interface.caches:
        present, readers = None, []
        for value, node, index in _flow(past):
            if value.is_graph_output():
                present = value
            reader = _reader(node, index) if node is not None else None
            if node is not None and reader is not None:
                readers.append((order[node], reader[0]))
                present = node.outputs[reader[1]] if reader[1] is not None else present
        kinds = {kind for _, kind in readers}
        if present is None or not present.is_graph_output():
            return f"nothing gives out what {past.name} has become"
        if len(kinds) != 1:
            return (
                f"{past.name} is read neither as keys nor as values"
                if not kinds
                else f"{past.name} is read as both"
            )
        found[kinds.pop()].append((min(readers)[0], past, present))
    keys, values = (sorted(side, key=lambda entry: entry[0]) for side in found)
    if len(keys) != len(values):
        return f"there are {len(keys)} caches of keys and {len(values)} of values"
    return [
        Cache(i, which, past, present)
        for i, layer in enumerate(zip(keys, values, strict=True))
        for which, (_, past, present) in zip(("key", "value"), layer, strict=True)
    ]


def _flow(past: ir.Value) -> Iterator[tuple[ir.Value, ir.Node | None, int]]:
    """Values that hold a cache's content, each alone and with every node that reads it."""
    seen, waiting = {past}, [past]
    while waiting:
        value = waiting.pop()
        yield value, None, 0
        for node, index in value.uses():
            yield value, node, index
            if node.op_type in MOVES and node.domain == "":
                waiting.extend(output for output in node.outputs if output not in seen)
                seen.update(node.outputs)


def _reader(node: ir.Node, index: int) -> tuple[int, int | None] | None:
    """0 where a node reads a value as keys, 1 for values; and which output is the new cache."""
    slots = ATTENTIONS.get((node.domain, node.op_type))
    if slots is not None:
        return slots.get(index)
    if node.op_type in ("MatMul", "Einsum") and node.domain == "":
        others = [value for i, value in enumerate(node.inputs) if i != index and value is not None]
        return (1 if any(map(_is_softmax, others)) else 0), None
    return None


def _is_softmax(value: ir.Value) -> bool:
    """Whether a value is made of probabilities and nothing else."""
    node = value.producer()
    while node is not None and node.op_type != "Softmax":
        if node.op_type not in ("Cast", "Dropout", "Identity", "Reshape", "Transpose", "Where"):
            return False
        source = node.inputs[2] if node.op_type == "Where" else node.inputs[0]
        node = source.producer() if source is not None else None
    return node is not None
