"""Each edge of a control island is told what it is and becomes the canonical spelling of that, or is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from graph_passes.control.interface import Interface
from graph_passes.control.island import Edge, Island, Use, island_of
from graph_passes.control.masks import MASKED, Meaning, Reading, meaning_of
from graph_passes.control.probe import Runner
from graph_passes.control.rewrite import Canonical
from graph_passes.control.tables import (
    Lookup,
    NoTable,
    Positions,
    Table,
    context_of,
    lookup_of,
    positions_of_tokens,
    reads_rows,
    table_of,
)
from graph_passes.inference import dims, facts
from graph_passes.inference.known import Shape
from graph_passes.lowering.causal import mask_structure, positions_of
from graph_passes.matching import attribute, constant, producer, role_of
from graph_passes.outcome import NearMiss, Outcome
from graph_passes.proof.evaluate import CannotEvaluate

ON_THE_WAY = frozenset(["Add", "Sub", "Where", "Cast", "Identity", "Mul", "Div"])
"""What may lie between two masks of one softmax."""

BEFORE_SOFTMAX = ON_THE_WAY | {"Clip", "Concat", "Max", "Reshape", "Tanh"}
"""What may lie between a mask and the softmax that it is for: caps, sinks, a guard against overflow."""


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """What became of a graph's edges.

    Attributes:
        attention_mask: an input of the graph now, where any edge needs one.
        unbounded: name of a rotary table that the graph computes itself without saying how far; empty for none.
    """

    outcome: Outcome
    attention_mask: ir.Value
    unbounded: str


def rewrite_edges(model: ir.Model, interface: Interface, context_length: int = 0) -> Rewritten:
    """Rewrite all edges that can be told.

    Args:
        context_length: rows of rotary tables; 0 for as many as the graph's own tables have.
    """
    island = island_of(model.graph, interface)
    runner = Runner(model, interface, island)
    work = _Work(model, runner, island, Canonical(model, interface), context_length)
    work.take_masks()
    work.take_rows()
    work.canonical.splice()
    outcome = Outcome(work.fired, work.refused, tuple(work.misses))
    return Rewritten(outcome, work.canonical.attention_mask, work.unbounded)


def is_canonical(value: ir.Value | None) -> bool:
    """Whether a value is spelled as `graph_passes.control.rewrite` spells it."""
    node = value.producer() if value is not None else None
    if node is None or value is None:
        return False
    if node.op_type == "Where":
        value = node.inputs[0]
        return value is not None and not isinstance(mask_structure(value), str)
    if node.op_type == "Gather":
        index = node.inputs[1]
        shifted = producer(index, "Add")
        if shifted is not None and constant(shifted.inputs[1]) is not None:
            index = shifted.inputs[0]
        return positions_of(index) is not None
    if node.op_type in ("Concat", "Neg", "Reshape", "Unsqueeze"):
        parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return all(map(is_canonical, parts))
    return not isinstance(mask_structure(value), str) or positions_of(value) is not None


Found = Meaning | Table | Lookup | Positions | str
"""What an edge is to a node that uses it, or why that is not known."""


@dataclasses.dataclass(frozen=True)
class Masking:
    """A use of a mask, and what the mask means."""

    use: Use
    data: ir.Value
    meaning: Meaning


class _Work:
    """One graph's edges."""

    def __init__(
        self, model: ir.Model, runner: Runner, island: Island, canonical: Canonical, context_length: int
    ) -> None:
        self.model = model
        self.runner = runner
        self.island = island
        self.canonical = canonical
        self.fired = 0
        self.unbounded = ""
        self._refusals: dict[tuple[str, str], list[str]] = {}
        self.misses: list[NearMiss] = []
        self._context_length = context_length
        canonical_edges = {edge for edge in island.edges if is_canonical(edge.value)}
        self._plain = canonical_edges | {edge for edge in island.edges if self._is_plain(edge)}
        self._masked = {_softmax_of(use.node) for edge in canonical_edges for use in edge.uses}

    def take_masks(self) -> None:
        """Tell what masks mean, and put one canonical mask in front of each softmax for all that it had."""
        groups: dict[ir.Node, list[Masking]] = {}
        for use, data, meaning in self._told(rows=False):
            if isinstance(meaning, Meaning):
                groups.setdefault(_softmax_of(use.node), []).append(Masking(use, data, meaning))
            else:
                self._refuse(use, str(meaning))
        order = {node: i for i, node in enumerate(self.model.graph)}
        for softmax, group in groups.items():
            group.sort(key=lambda masking: order[masking.use.node])
            if self._mask_scores(group):
                self._masked.add(softmax)

    def take_rows(self) -> None:
        """Tell what rotary tables and learned positions are, and look them up by the canonical positions."""
        self.runner.padding_counts = self.runner.pads and any(
            node.op_type in ("Softmax", "Attention") and node not in self._masked for node in self.model.graph
        )
        for use, _, found in self._told(rows=True):
            node = use.node
            if isinstance(found, str):
                self._refuse(use, found)
                continue
            self.fired += 1
            if isinstance(found, Lookup):
                node.replace_input_with(use.index, self.canonical.learned(found))
            elif not isinstance(found, Table):
                node.replace_input_with(3, self.canonical.positions)
            elif node.op_type == "RotaryEmbedding":
                node.resize_inputs(4)
                node.replace_input_with(use.index, self.canonical.table(found))
                node.replace_input_with(3, self.canonical.positions)
            else:
                node.replace_input_with(use.index, self.canonical.rows(found))

    def _told(self, *, rows: bool) -> Iterator[tuple[Use, ir.Value, Found]]:
        """Uses of masks, or of rows by position, with the data that they meet and what they are. Uses of one kind of
        one edge share what is found."""
        for edge in self.island.edges:
            if edge in self._plain:
                continue
            found: dict[object, Found] = {}
            for use in edge.uses:
                data = self._data(use)
                sizes = None if data is None else _sizes(use, data)
                if data is None or sizes is None:
                    if not rows:  # said once, though uses are gone through for masks and for rows
                        self._refuse(
                            use, "it meets no data, or more than one, or data whose shape is unknown"
                        )
                    continue
                if self._is_row(edge, use, sizes) != rows:
                    continue
                objection = None if rows else self._objection(use, data, sizes)
                if objection is not None:
                    yield use, data, objection
                    continue
                key = _reading(use, data), len(sizes), sizes[:1]
                if key not in found:
                    tell = self._row if rows else self._mask
                    found[key] = tell(edge, use, data, sizes)
                yield use, data, found[key]

    def _is_row(self, edge: Edge, use: Use, sizes: Shape) -> bool:
        if use.node.op_type == "Add":
            return len(sizes) == 3 and reads_rows(self.runner.piece([edge.value]))
        return use.node.op_type in ("Mul", "RotaryEmbedding")

    def _mask(self, edge: Edge, use: Use, data: ir.Value, sizes: Shape) -> Found:
        reading = _reading(use, data)
        assert reading is not None
        return meaning_of(self.runner, edge.value, reading, len(sizes))

    def _objection(self, use: Use, data: ir.Value, sizes: Shape) -> str | None:
        """Why one use, whatever the edge means, is none of a mask; None where it may be."""
        reading = _reading(use, data)
        if reading is None:
            return f"nothing is known that {use.node.op_type} would do with it"
        if len(sizes) < 4 or sizes[0] != dims.symbol(dims.BATCH):
            return f"it meets {' x '.join(map(str, sizes))}, not scores of a batch by head"
        return self._no_mask(use.node, reading)

    def _no_mask(self, node: ir.Node, reading: Reading) -> str | None:
        """Why a node, whatever it reads, does not mask scores; None where it may."""
        if node.op_type == "Attention":
            if len(node.inputs) > 6 and node.inputs[6] is not None:
                return "the attention is told the lengths of its rows besides"
            past = self.runner.has_past and attribute(node, "is_causal", 0)
            return "the attention is causal by itself besides, with a past" if past else None
        if not _goes_into_softmax(node.outputs[0]):
            return "what it masks goes into no softmax over keys"
        if node.op_type != "Where":
            return None
        fill = node.inputs[2 if reading == "seen" else 1]
        if fill is None or fill in self.island.data:
            return "what takes the place of hidden scores is computed from data"
        try:
            (array,) = self.runner.run(self.runner.piece([fill]), self.runner.probes[0])
        except CannotEvaluate as reason:
            return str(reason)
        return None if (array <= MASKED).all() else f"{array.max():g} takes the place of hidden scores"

    def _row(self, edge: Edge, use: Use, data: ir.Value, sizes: Shape) -> Found:
        if use.node.op_type == "Add":
            return lookup_of(self.runner, edge.value, sizes)
        if use.index == 3:
            table = facts.dims(use.node.inputs[1]) if use.node.inputs[1] is not None else None
            rows = table[0] if table else None
            return positions_of_tokens(self.runner, edge.value, rows if isinstance(rows, int) else 1)
        return table_of(self.runner, edge.value, sizes, lambda: self._context(edge))

    def _mask_scores(self, group: list[Masking]) -> bool:
        """Mask the scores of one softmax, or refuse to."""
        last, meanings = group[-1].use.node, [masking.meaning for masking in group]
        is_causal = bool(attribute(last, "is_causal", 0)) and not self.runner.has_past
        if not (is_causal or any(meaning.causal for meaning in meanings)):
            self._refuse(group[-1].use, "its mask lets a token see later ones")
            return False
        if self.runner.pads and not any(meaning.valid for meaning in meanings):
            self._refuse(group[-1].use, "its mask lets a token see padding")
            return False
        window = min((meaning.window for meaning in meanings if meaning.window is not None), default=None)
        if last.op_type == "Attention":
            last.replace_input_with(3, self.canonical.mask(window))
            last.attributes.pop("is_causal", None)
        else:
            data = group[-1].data
            rank, dtype = len(facts.dims(data) or ()), data.dtype or ir.DataType.FLOAT
            self._become_sum(last, data, self.canonical.bias(window, rank, dtype))
        for masking in group[:-1]:
            ir.convenience.replace_all_uses_with(masking.use.node.outputs[0], masking.data)
        self.fired += len(group)
        return True

    def _become_sum(self, node: ir.Node, data: ir.Value, bias: ir.Value) -> None:
        graph = self.model.graph
        add = ir.node("Add", [data, bias], name=node.name, metadata_props=dict(node.metadata_props))
        add.outputs[0].name = node.outputs[0].name
        ir.convenience.replace_nodes_and_values(graph, node, [node], [add], node.outputs, add.outputs)

    def _data(self, use: Use) -> ir.Value | None:
        """The data that an edge meets in a node: scores, or what is rotated, or embeddings; None unless it is one."""
        node = use.node
        if node.op_type in ("Attention", "RotaryEmbedding"):
            return node.inputs[0]
        others = [
            value for i, value in enumerate(node.inputs) if i != use.index and value in self.island.data
        ]
        return others[0] if len(others) == 1 else None

    def _is_plain(self, edge: Edge) -> bool:
        """Whether an edge is one number on every call: a scale, or a length."""
        try:
            piece = self.runner.piece([edge.value])
            arrays = [self.runner.run(piece, probe)[0] for probe in self.runner.probes[:2]]
        except CannotEvaluate:
            return False  # what is wrong is said where it is told what the edge is
        first = arrays[0].reshape(-1)[:1]
        return all(array.size == 1 for array in arrays) or all((array == first).all() for array in arrays)

    def _context(self, edge: Edge) -> int:
        if self._context_length:
            return self._context_length
        sizes = [context_of(self.runner.piece([other.value])) for other in self.island.edges]
        known = [size for size in sizes if size is not None]
        if not known:
            self.unbounded = str(edge.value.name)
            raise NoTable("how many positions there may be is not known")
        return min(known)

    def _refuse(self, use: Use, reason: str) -> None:
        value = use.node.inputs[use.index]
        what = (str(value.name) if value is not None else "", reason)
        self._refusals.setdefault(what, []).append(role_of(use.node))
        self.misses.append(NearMiss.of(use.node, ": ".join(what)))

    @property
    def refused(self) -> tuple[str, ...]:
        """Each edge with the first of the places where it stays, and why."""
        return tuple(
            f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {value}: {reason}"
            for (value, reason), places in self._refusals.items()
        )


def _reading(use: Use, data: ir.Value) -> Reading | None:
    """How a node would take a mask; None for one that takes none."""
    node = use.node
    if node.op_type == "Attention":
        value = node.inputs[3]
        return "seen" if value is not None and value.dtype == ir.DataType.BOOL else "added"
    if node.op_type == "Where" and use.index == 0:
        return "seen" if node.inputs[1] is data else "hidden"
    if node.op_type == "Add":
        return "added"
    return "subtracted" if node.op_type == "Sub" and use.index == 1 else None


def _sizes(use: Use, data: ir.Value) -> Shape | None:
    """Dims of the data; for operators those of the scores inside, or of the tables that they want."""
    sizes = facts.dims(data)
    if sizes is None or use.node.op_type not in ("Attention", "RotaryEmbedding"):
        return sizes
    return (
        (sizes[0], 0, 0, 0) if use.node.op_type == "Attention" else (sizes[0], dims.symbol(dims.SEQUENCE), 0)
    )


def _goes_into_softmax(value: ir.Value) -> bool:
    """Whether scores ``[…, T]`` go into a softmax over their keys and nowhere else."""
    users = [node for node, _ in value.uses()]
    if not users or value.is_graph_output():
        return False
    for node in users:
        rank = len(facts.dims(value) or ())
        over_keys = node.op_type == "Softmax" and attribute(node, "axis", -1) in (-1, rank - 1)
        if not over_keys and (node.op_type not in BEFORE_SOFTMAX or not _goes_into_softmax(node.outputs[0])):
            return False
    return True


def _softmax_of(node: ir.Node) -> ir.Node:
    """The softmax for which a node masks scores; the node itself where it is for none."""
    at = node
    while at.op_type in ON_THE_WAY and len(at.outputs[0].uses()) == 1:
        at = next(iter(at.outputs[0].uses()))[0]
    return at if at.op_type == "Softmax" else node
