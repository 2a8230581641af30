"""The smallest pieces in which two graphs of one model differ, each run on the other's own activations.

Both graphs are cut at the values that they have in common, by name: a rewrite keeps the name of what it makes anew. A
piece that is written as before needs no look; of the others, both sides are run on what the graph before holds there,
and have to agree within the noise that a proof of a rewrite allows (`graph_passes.proof.prove`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from exporter.emitter import ROLE
from exporter.errors import first_line
from graph_passes.matching import SMALL
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.keys import attribute_key
from graph_passes.proof.prove import compare
from graph_passes.proof.samples import Sample, Scenario
from graph_passes.proof.subgraph import NodeSnapshot, Subgraph, upwards
from graph_passes.proof.witness import Witness
from onnx_gpt.bisecting.running import making

Values = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Piece:
    """What makes the same values in both graphs.

    Attributes:
        names: of these values.
        place: role of what makes them.
        before, after: from values that both graphs have; each reads those of its own graph.
    """

    names: tuple[str, ...]
    place: str
    before: Subgraph
    after: Subgraph

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what either side reads."""
        return tuple(dict.fromkeys(str(v.name) for side in (self.before, self.after) for v in side.inputs))

    def feeds(self, values: Values) -> dict[ir.Value, np.ndarray]:
        """What both sides read, weights too."""
        fed = {v: values[str(v.name)] for side in (self.before, self.after) for v in side.inputs}
        for side in (self.before, self.after):
            fed |= {v: v.const_value.numpy() for v in side.initializers() if v.const_value is not None}
        return fed


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A piece whose sides differ in one call of a case.

    Attributes:
        why: how.
        values: all values of the graph before in that call.
    """

    piece: Piece
    why: str
    scenario: Scenario
    values: Values


def pieces(before: ir.Model, after: ir.Model, shapes: Values) -> Iterator[Piece]:
    """Pieces that are written differently, in the order of the graph after.

    Args:
        shapes: values of the graph before in some call: a value of another rank is no common one.
    """
    old = {str(v.name): v for node in before.graph for v in node.outputs if v.name}
    common = {
        str(v.name): v
        for node in after.graph
        for v in node.outputs
        if v.name in old and v.name in shapes and _alike(old[str(v.name)], v)
    }
    new_made, old_made = making(), making()
    theirs = {old[name] for name in common}
    ours = set(common.values())
    for node in after.graph:
        found = [v for v in node.outputs if v in ours and (v.uses() or v.is_graph_output())]
        if not found:
            continue
        roots = [old[str(v.name)] for v in found]
        sides = (
            _cut(before, roots, theirs, old_made),
            _cut(after, found, ours, new_made),
        )
        if not _same(*sides):
            yield Piece(tuple(str(v.name) for v in found), place_of(node, sides), *sides)


def judge(piece: Piece, values: Values, scenario: Scenario) -> str:
    """How the two sides of a piece differ on these values; empty where they do not."""
    try:
        feeds = piece.feeds(values)
    except KeyError as missing:
        return f"it reads {missing}, which the graph before does not have"
    witness = Witness(piece.place, piece.before, piece.after, {}, None)
    try:
        return compare(witness, Sample(feeds, scenario), exact=False).wrong
    except CannotEvaluate as error:
        return f"it does not run: {first_line(error)}"


def place_of(node: ir.Node, sides: Sequence[Subgraph] = ()) -> str:
    """Role of a node; else of what its piece holds, else of the nearest node above it, else its name."""
    own = node.metadata_props.get(ROLE)
    if own:
        return own
    name = str(node.name or node.outputs[0].name or node.op_type)
    if name.startswith("layers."):
        return name
    for side in reversed(sides):
        for snapshot in reversed(side.nodes):
            maker = snapshot.outputs[0].producer()
            role = maker.metadata_props.get(ROLE) if maker is not None else None
            if role:
                return role
    return name if _is_ours(name) else _above(node) or name


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in ("embedding", "positions", "mask", "lengths", "logits", "norm", "head")


def _above(node: ir.Node) -> str:
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop(0)
        for value in current.inputs:
            maker = value.producer() if value is not None else None
            if maker is None or maker in seen:
                continue
            role = maker.metadata_props.get(ROLE)
            if role:
                return role
            seen.add(maker)
            waiting.append(maker)
    return ""


def _alike(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values of one name may be the same: of one type, and one rank where both are known."""
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:
        return False
    return a.shape is None or b.shape is None or len(a.shape) == len(b.shape)


def _cut(
    model: ir.Model,
    roots: Sequence[ir.Value],
    stops: set[ir.Value],
    made_by: Callable[[ir.Value], NodeSnapshot | None],
) -> Subgraph:
    inside = set(roots)
    boundary, snapshots = upwards(roots, lambda v: v in stops and v not in inside, made_by)
    return Subgraph(boundary, snapshots, tuple(roots), dict(model.graph.opset_imports), dict(model.functions))


def _same(before: Subgraph, after: Subgraph) -> bool:
    """Whether two pieces are written alike, name for name, and read the same constants."""
    if len(before.nodes) != len(after.nodes) or before.opset_imports.get("") != after.opset_imports.get(""):
        return False
    return all(_same_operation(a, b, before, after) for a, b in zip(before.nodes, after.nodes, strict=True))


def _same_operation(a: NodeSnapshot, b: NodeSnapshot, before: Subgraph, after: Subgraph) -> bool:
    kind = (a.domain, a.op_type, a.overload)
    if kind != (b.domain, b.op_type, b.overload) or kind in before.functions or kind in after.functions:
        return False
    if len(a.inputs) != len(b.inputs) or [v.name for v in a.outputs] != [v.name for v in b.outputs]:
        return False
    if sorted(map(_attribute, a.attributes)) != sorted(map(_attribute, b.attributes)):
        return False
    return all(_same_value(x, y) for x, y in zip(a.inputs, b.inputs, strict=True))


def _attribute(attribute: ir.Attr) -> str:
    return f"{attribute.name}={attribute_key(attribute)}"


def _same_value(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is None or b is None:
        return a is b
    x, y = a.const_value, b.const_value
    if a.producer() is not None or b.producer() is not None or x is None or y is None:
        return a.name == b.name and (x is None) == (y is None)
    if x is y:
        return True
    small = not isinstance(x, ir.LazyTensor) and not isinstance(y, ir.LazyTensor) and x.nbytes <= SMALL
    return small and x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
