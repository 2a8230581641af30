"""What a firing leaves behind: the piece of graph that it took away and the piece that it put in its place.

`graph_passes.matching.replace` hands both to whoever listens (`recording`). A witness holds the two pieces
between one boundary: values that both read and somebody else makes. Floats end there. Integers, booleans and
floats that follow from them (masks, positions, biases by position, lengths, shapes) are *control*: they are followed up
to the graph's inputs, so that both sides get them from one attention mask, as in the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import onnx_ir as ir

from graph_passes.matching import SMALL, constant, listening, placed_table, role_of
from graph_passes.proof.keys import FLOATS, Digests, Facts, key_of
from graph_passes.proof.subgraph import Making, NodeSnapshot, Subgraph, live_snapshots, upwards

SEARCHED = 64
"""Nodes looked at for how what one side reads follows from what the other reads."""


@dataclasses.dataclass(frozen=True)
class Witness:
    """Two pieces that have to give the same. Outputs correspond by position.

    Attributes:
        place: role of the node at which it fired.
        before, after: the pieces; what they read is among the same values.
        facts: of the pieces' inputs and outputs.
        key: equal for two witnesses of equal structure.
    """

    place: str
    before: Subgraph
    after: Subgraph
    facts: Mapping[ir.Value, Facts]
    key: Hashable

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        return tuple(dict.fromkeys((*self.before.inputs, *self.after.inputs)))


class Recorder:
    """Takes witnesses while a pass runs.

    Args:
        model: what the pass works on.

    Attributes:
        witnesses: one for each structure that has not been seen by this recorder, in the order of firing.
        firings: how often `replace` was called.
        replaced: the value that took the place of another, by `replace`.
        seen: keys so far, those of earlier passes included.
    """

    def __init__(self, model: ir.Model, seen: set[Hashable] | None = None) -> None:
        self.model = model
        self.witnesses: list[Witness] = []
        self.firings = 0
        self.replaced: dict[ir.Value, ir.Value] = {}
        self.seen: set[Hashable] = set() if seen is None else seen
        self._control = _Control()
        self._digests = Digests(self.ends)

    def __call__(
        self,
        at: ir.Node,
        old: Sequence[ir.Node],
        new: Sequence[ir.Node],
        values: Sequence[tuple[ir.Value, ir.Value]],
    ) -> None:
        """Look at a replacement that is about to be made."""
        self.firings += 1
        pairs = [(a, b) for a, b in values if a.uses() or a.is_graph_output()]
        self.replaced.update(pairs)
        if not pairs:
            return  # a node was changed in place, which `graph_passes.proof.difference` sees
        made_by, imports = live_snapshots(), dict(self.model.graph.opset_imports)
        before, after = (
            Side(
                [pair[i] for pair in pairs], made_by, frozenset(v for n in nodes for v in n.outputs), imports
            )
            for i, nodes in enumerate((old, new))
        )
        brief = self._brief([(old, before), (new, after)])
        if brief is not None:
            if brief in self.seen:
                return
            self.seen.add(brief)
        self.add(take(self.model, role_of(at), (before, after), self.ends))

    def _brief(self, sides: Sequence[tuple[Sequence[ir.Node], Side]]) -> Hashable | None:
        """A key that is found without walking up: the pieces' own nodes, and digests of the control values that they
        read. None where one reads floats that the other does not."""
        snapshots = [[NodeSnapshot.of(node) for node in nodes] for nodes, _ in sides]
        facts: dict[ir.Value, Facts] = {}
        floats: list[set[ir.Value]] = []
        for (_, side), mine in zip(sides, snapshots, strict=True):
            read = dict.fromkeys(
                v for v in (*(v for snapshot in mine for v in snapshot.reads()), *side.roots)
            )
            facts |= {value: Facts.of(value) for value in read}
            floats.append(
                {v for v in read if v not in side.own and v.producer() is not None and self.ends(v)}
            )
        if floats[0] != floats[1]:
            return None
        made = sides[0][1].own | sides[1][1].own

        def describe(value: ir.Value) -> Hashable | None:
            if value in made or value in floats[0] or value.producer() is None:
                return None
            return self._digests[value]

        pieces = [(mine, side.roots) for mine, (_, side) in zip(snapshots, sides, strict=True)]
        return "brief", key_of(pieces, facts, describe)

    def add(self, witness: Witness) -> None:
        """Keep a witness whose structure is new."""
        if witness.key not in self.seen:
            self.seen.add(witness.key)
            self.witnesses.append(witness)

    def ends(self, value: ir.Value) -> bool:
        """Whether a piece may end at a value: at floats of known shape that do not follow from integers."""
        facts = Facts.of(value)
        return facts.is_float and facts.is_known and not self._control.makes(value)


@contextlib.contextmanager
def recording(model: ir.Model, seen: set[Hashable] | None = None) -> Iterator[Recorder]:
    """Listen to every `replace` inside the block.

    Args:
        seen: keys of witnesses that need not be taken again; new ones are added.
    """
    recorder = Recorder(model, seen)
    with listening(recorder):
        yield recorder


@dataclasses.dataclass(frozen=True)
class Side:
    """Where one piece is cut out.

    Attributes:
        roots: what it has to give.
        made_by: the nodes of its graph.
        own: values inside the piece, whose nodes belong to it for certain.
        imports: opset of each domain.
    """

    roots: Sequence[ir.Value]
    made_by: Making
    own: frozenset[ir.Value]
    imports: Mapping[str, int]


def take(model: ir.Model, place: str, sides: tuple[Side, Side], stops: Callable[[ir.Value], bool]) -> Witness:
    """The witness of two pieces.

    Args:
        stops: whether a walk upwards may end at a value, which has to be the same on both sides.
    """
    opened: set[ir.Value] = set()
    while True:
        cuts = [upwards(side.roots, _unless(stops, side.own | opened), side.made_by) for side in sides]
        more = _to_open(cuts, sides, opened)
        if not more:
            break
        opened |= more
    before, after = (
        Subgraph(boundary, snapshots, tuple(side.roots), side.imports, dict(model.functions))
        for side, (boundary, snapshots) in zip(sides, cuts, strict=True)
    )
    known = {v: Facts.of(v) for v in (*before.inputs, *after.inputs, *before.outputs, *after.outputs)}
    opsets = tuple(side.imports.get("") for side in sides)
    key = opsets, key_of([(piece.nodes, piece.outputs) for piece in (before, after)], known)
    return Witness(place, before, after, known, key)


Cut = tuple[tuple[ir.Value, ...], tuple[NodeSnapshot, ...]]


def _unless(stops: Callable[[ir.Value], bool], inside: frozenset[ir.Value]) -> Callable[[ir.Value], bool]:
    return lambda value: value not in inside and stops(value)


def _to_open(cuts: Sequence[Cut], sides: tuple[Side, Side], opened: set[ir.Value]) -> frozenset[ir.Value]:
    """Values at which only one side ends and that follow from what the other side reads."""
    reads = [_looked_at(side, cut) for side, cut in zip(sides, cuts, strict=True)]
    made = [{value for snapshot in snapshots for value in snapshot.outputs} for _, snapshots in cuts]
    outside = [read - mine for read, mine in zip(reads, made, strict=True)]
    found: set[ir.Value] = set()
    for mine, other in ((0, 1), (1, 0)):
        made_by = sides[mine].made_by
        for value in outside[mine] - outside[other] - opened:
            if made_by(value) is not None and _leads_to(value, outside[other], made_by):
                found.add(value)
    return frozenset(found)


def _looked_at(side: Side, cut: Cut) -> set[ir.Value]:
    """Values of a piece whose elements matter and are not known; of others only the shape does, which is known."""
    return set(side.roots) | {
        value
        for snapshot in cut[1]
        if snapshot.op_type not in ("Shape", "Size")
        for value in snapshot.reads()
        if constant(value) is None
    }


def _leads_to(value: ir.Value, targets: set[ir.Value], made_by: Making) -> bool:
    """Whether a value follows from others by a few nodes. Weights are not crossed: beyond them is another idea of
    the model, which any values stand for."""
    seen: set[NodeSnapshot] = set()
    waiting = [value]
    while waiting and len(seen) < SEARCHED:
        snapshot = made_by(waiting.pop(0))
        if snapshot is None or snapshot in seen:
            continue
        seen.add(snapshot)
        sources = list(snapshot.reads())
        if not targets.isdisjoint(sources):
            return True
        if not any(map(_is_weight, sources)):
            waiting.extend(sources)
    return False


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and (isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL)


class _Control:
    """Which values follow from integers alone. Answers are kept: a pass changes how a value is computed, and
    not what it is."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def makes(self, value: ir.Value) -> bool:
        """Whether a float follows from integers and small constants; every other type does by definition."""
        waiting = [value]
        while waiting:
            current = waiting[-1]
            answer = self._answer(current)
            if answer is None:
                node = current.producer()
                assert node is not None
                sources = list(NodeSnapshot.of(node).reads())
                if any(self._known.get(source) is False for source in sources):
                    answer = False
                else:
                    unknown = [source for source in sources if source not in self._known]
                    if unknown:
                        waiting.append(unknown[0])
                        continue
                    answer = True
            self._known[current] = answer
            waiting.pop()
        return self._known[value]

    def _answer(self, value: ir.Value) -> bool | None:
        if value in self._known:
            return self._known[value]
        if value.dtype is not None and value.dtype not in FLOATS:
            return True
        node = value.producer()
        if node is not None and placed_table(node) is not None:
            return True
        if value.producer() is None:
            tensor = value.const_value
            if tensor is None or value.is_graph_input():
                return False
            return not isinstance(tensor, ir.LazyTensor) and tensor.nbytes <= SMALL
        return None
