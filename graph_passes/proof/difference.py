"""What a pass changed by other means than `graph_passes.matching.replace`: folding, sharing, moving.

Before and after are compared by the values that both have under one name. A node that is as it was, and reads
what it read, gives what it gave. Of every other one the piece between such values is a witness, and with all of
them the whole graph is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping

import onnx_ir as ir

from graph_passes.matching import SMALL, role_of
from graph_passes.proof.keys import Facts, attribute_key
from graph_passes.proof.subgraph import NodeSnapshot
from graph_passes.proof.witness import Recorder, Side, take
from graph_passes.structure.constants import tensor_key
from graph_passes.structure.upgrade import means_the_same


class Before:
    """A graph as it was: a pass may change nodes, names and shapes in place."""

    def __init__(self, model: ir.Model) -> None:
        self.snapshots: dict[ir.Value, NodeSnapshot] = {}
        self.values: dict[str, ir.Value] = {}
        self.facts: dict[ir.Value, Facts] = {}
        graph = model.graph
        self.imports = dict(graph.opset_imports)
        for value in (*graph.inputs, *graph.initializers.values()):
            self._add(value)
        for node in graph:
            snapshot = NodeSnapshot.of(node)
            for value in node.outputs:
                self.snapshots[value] = snapshot
                self._add(value)

    def of(self, value: ir.Value) -> ir.Value | None:
        """The value of this name; where there is none, the value itself, if it was there under another one."""
        return self.values.get(str(value.name)) or (value if value in self.facts else None)

    def _add(self, value: ir.Value) -> None:
        if value.name:
            self.values[value.name] = value
            self.facts[value] = Facts.of(value)


def record_differences(before: Before, model: ir.Model, recorder: Recorder) -> None:
    """Add a witness for every change that the recorder has not seen being made."""
    twins = _Twins(before, model, recorder.replaced)
    for change in list(twins.changed()):
        sides = (
            Side(change.old, before.snapshots.get, frozenset(change.old), before.imports),
            Side(change.new, twins.made_by, frozenset(change.new), dict(model.graph.opset_imports)),
        )
        recorder.add(take(model, change.place, sides, lambda value: twins.ends(value, recorder)))


@dataclasses.dataclass(frozen=True)
class Change:
    """Values that are made in another way now, those of one node together."""

    old: tuple[ir.Value, ...]
    new: tuple[ir.Value, ...]
    place: str


class _Twins:
    """Which value of the graph before is which of the graph after. Pieces of both are written in the values of
    the graph before, where it has them."""

    def __init__(self, before: Before, model: ir.Model, replaced: Mapping[ir.Value, ir.Value]) -> None:
        self._before = before
        self._graph = model.graph
        self._replaced = replaced
        self._replacing = frozenset(replaced.values())
        self._old: dict[ir.Value, ir.Value] = {}
        self._new: dict[ir.Value, ir.Value] = {}
        self._snapshots: dict[ir.Node, NodeSnapshot] = {}

    def changed(self) -> Iterator[Change]:
        """All changes that `replace` did not make, in topological order."""
        for value in (*self._graph.inputs, *self._graph.initializers.values()):
            old = self._before.of(value)
            if old is None:
                continue
            if old not in self._before.snapshots:
                self._pair(old, value)
            elif value not in self._replacing and _constant(self._before.snapshots.get(old), old) != _tensor(
                value
            ):
                yield Change((old,), (value,), str(value.name))
        for node in self._graph:
            was = self._was(node)
            if was is not None:
                for old, new in zip(was.outputs, node.outputs, strict=True):
                    self._pair(old, new)
                continue
            olds = tuple(old for new in node.outputs if (old := self._kept(new)) is not None)
            if olds:
                yield Change(olds, olds, role_of(node))

    def _kept(self, new: ir.Value) -> ir.Value | None:
        """The value before that a value has to be equal to, where nobody has seen to it yet."""
        old = self._before.of(new)
        if old is None or not (new.uses() or new.is_graph_output()):
            return None
        seen = new in self._replacing
        if seen or new.is_graph_output() or Facts.of(new) == self._before.facts[old]:
            self._pair(old, new)
            return None if seen else old
        return None

    def made_by(self, value: ir.Value) -> NodeSnapshot | None:
        """The node that makes a value in the graph after."""
        node = self._new.get(value, value).producer()
        if node is None:
            return None
        if node not in self._snapshots:
            snapshot = NodeSnapshot.of(node)
            self._snapshots[node] = dataclasses.replace(
                snapshot,
                inputs=tuple(None if v is None else self._old.get(v, v) for v in snapshot.inputs),
                outputs=tuple(self._old.get(v, v) for v in snapshot.outputs),
            )
        return self._snapshots[node]

    def ends(self, value: ir.Value, recorder: Recorder) -> bool:
        """Whether both graphs have the value, and pieces may end there."""
        new = self._new.get(value)
        return new is not None and recorder.ends(new)

    def _was(self, node: ir.Node) -> NodeSnapshot | None:
        """The same node in the graph before: of the same op, on the same values."""
        first = next((value for value in node.outputs if value.name), None)
        old = None if first is None else self._before.of(first)
        snapshot = None if old is None else self._before.snapshots.get(old)
        if (
            snapshot is None
            or len(snapshot.outputs) != len(node.outputs)
            or len(snapshot.inputs) != len(node.inputs)
        ):
            return None
        if (snapshot.op_type, snapshot.domain, snapshot.overload) != (
            node.op_type,
            node.domain,
            node.overload,
        ):
            return None
        if self._means_other(node.domain, node.op_type):
            return None
        if not all(self._same(was, now) for was, now in zip(snapshot.inputs, node.inputs, strict=True)):
            return None
        attributes = tuple(node.attributes.values())
        same = len(attributes) == len(snapshot.attributes) and all(
            a is b or attribute_key(a) == attribute_key(b)
            for a, b in zip(snapshot.attributes, attributes, strict=True)
        )
        return snapshot if same else None

    def _means_other(self, domain: str, op_type: str) -> bool:
        """Whether the graph has moved to an opset in which an op is defined anew."""
        before, after = (
            imports.get(domain, 1) for imports in (self._before.imports, self._graph.opset_imports)
        )
        return before != after and not (domain == "" and means_the_same(op_type, before, after))

    def _same(self, was: ir.Value | None, now: ir.Value | None) -> bool:
        """Whether a node reads what it read: the twin, its replacement, or the same constant elsewhere."""
        if was is None or now is None:
            return was is now
        if self._old.get(now) is was:
            return True
        snapshot = self._before.snapshots.get(was)
        while was in self._replaced or (
            snapshot is not None and snapshot.op_type == "Identity" and snapshot.domain == ""
        ):
            following = self._replaced.get(was) or (snapshot.inputs[0] if snapshot is not None else None)
            if following is None:
                return False
            was, snapshot = following, self._before.snapshots.get(following)
            if was is now or self._old.get(now) is was:
                return True
        constant = _tensor(now)
        return constant is not None and constant == _constant(snapshot, was)

    def _pair(self, old: ir.Value, new: ir.Value) -> None:
        self._old[new] = old
        self._new[old] = new


def _constant(snapshot: NodeSnapshot | None, value: ir.Value) -> Hashable | None:
    """What a Constant node or an initializer of the graph before holds, where that is small."""
    if snapshot is None:
        return _tensor(value)
    if snapshot.op_type != "Constant" or snapshot.domain != "":
        return None
    return _held(ir.convenience.get_const_tensor(value))


def _tensor(value: ir.Value) -> Hashable | None:
    return None if value.producer() is not None or value.is_graph_input() else _held(value.const_value)


def _held(tensor: ir.TensorProtocol | None) -> Hashable | None:
    if tensor is None or isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL:
        return None
    return tensor_key(tensor)
