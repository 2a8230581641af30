"""The canonical spelling of what an island computes, written into a foreign graph."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporter.control import Control
from exporter.emitter import Emitter
from graph_passes.control.interface import Interface
from graph_passes.control.tables import Halves, Layout, Lookup, Table
from graph_passes.matching import make


class Canonical:
    """Writes each mask, table and position once, in front of the graph.

    Nothing is in the graph before `splice`.
    """

    def __init__(self, model: ir.Model, interface: Interface) -> None:
        self._model = model
        self._emit = Emitter({})
        self.attention_mask = interface.attention_mask or ir.Value(name="attention_mask")
        self._interface = interface
        self._control = Control(self._emit, interface.input_ids, self.attention_mask)
        self._made: dict[Hashable, ir.Value] = {}

    @property
    def positions(self) -> ir.Value:
        """int64 ``[B, S]``."""
        return self._control.positions

    def mask(self, window: int | None) -> ir.Value:
        """bool ``[B, 1, S, T]``."""
        return self._control.mask(window)

    def bias(self, window: int | None, rank: int, dtype: ir.DataType) -> ir.Value:
        """0 for what is seen and the lowest float for what is not, ``[B, 1, S, T]`` with more axes for a higher
        rank."""
        mask = self.mask(window)
        key = ("bias", window, rank, dtype)
        if key not in self._made:
            low = np.array(ml_dtypes.finfo(dtype.numpy()).min, dtype.numpy())  # type: ignore[no-untyped-call]
            zero = self._emit.constant(f"mask.seen.{dtype.name.lower()}", np.zeros_like(low))
            lowest = self._emit.constant(f"mask.lowest.{dtype.name.lower()}", low)
            name = (
                f"{mask.name}.bias"
                if dtype == ir.DataType.FLOAT
                else f"{mask.name}.bias.{dtype.name.lower()}"
            )
            bias = self._emit.op("Where", [mask, zero, lowest], name=name)
            if rank != 4:
                axes = self._emit.ints(f"axes_of_rank_{rank}", range(1, rank - 3))
                bias = self._emit.op("Unsqueeze", [bias, axes], name=f"{name}.rank_{rank}")
            self._made[key] = bias
        return self._made[key]

    def table(self, table: Table) -> ir.Value:
        """The rows of all positions, as an initializer that is written when the model is."""
        kind = "sin" if table.is_sine else "cos"
        key = (kind, table.key)
        if key not in self._made:
            count = sum(isinstance(known, tuple) and known[0] == kind for known in self._made)
            name = f"rotary.{kind}_{count}" if count else f"rotary.{kind}"
            self._made[key] = self._emit.constant(name, table.rows)
        return self._made[key]

    def rows(self, table: Table) -> ir.Value:
        """The rows of a call's tokens, in the layout of the value that they replace."""
        whole = self.table(table)
        key = ("rows", whole, table.halves, table.layout)
        if key not in self._made:
            rows = self._gathered(whole, self.positions, f"{whole.name}.rows")
            doubled = self._doubled(rows, table.halves, str(whole.name))
            self._made[key] = self._laid_out(doubled, table.layout, f"{doubled.name}.axes")
        return self._made[key]

    def learned(self, lookup: Lookup) -> ir.Value:
        """Rows of learned positions, in the layout of the value that they replace."""
        key = ("learned", lookup)
        if key not in self._made:
            table, positions, emit = lookup.table, self.positions, self._emit
            shape = [] if table.shape is None else list(table.shape)
            ones = [axis for axis, dim in enumerate(shape) if dim == 1]
            if len(shape) > 2:
                axes = emit.ints("axes_of_positions", ones)
                table = emit.op("Squeeze", [table, axes], name="positions.table")
            if lookup.offset:
                offset = emit.scalar(f"offset_{lookup.offset}", lookup.offset)
                positions = emit.op("Add", [positions, offset], name="positions.shifted")
            rows = self._gathered(table, positions, "positions.rows")
            self._made[key] = self._laid_out(rows, lookup.layout, "positions.axes")
        return self._made[key]

    def _gathered(self, table: ir.Value, positions: ir.Value, name: str) -> ir.Value:
        key = ("gathered", table, positions)
        if key not in self._made:
            self._made[key] = self._emit.op("Gather", [table, positions], name=name, axis=0)
        return self._made[key]

    def _doubled(self, rows: ir.Value, halves: Halves, name: str) -> ir.Value:
        """All channels ``[B, S, D]`` of those that differ."""
        if halves == "half":
            return rows
        key = ("doubled", rows, halves)
        if key not in self._made:
            emit, first = self._emit, rows
            if "opposite" in halves:
                first = emit.op("Neg", [rows], name=f"{name}.negative")
            if halves in ("equal", "opposite"):
                self._made[key] = emit.op("Concat", [first, rows], name=f"{name}.{halves}", axis=-1)
            else:
                last = emit.ints("axis_3", [3])
                parts = [
                    emit.op("Unsqueeze", [part, last], name=f"{name}.{part.name}_4d")
                    for part in dict.fromkeys([first, rows])
                ]
                pairs = emit.op("Concat", [parts[0], parts[-1]], name=f"{name}.{halves}_4d", axis=3)
                merged = emit.ints("merge_pairs", [0, 0, -1])
                self._made[key] = emit.op("Reshape", [pairs, merged], name=f"{name}.{halves}")
        return self._made[key]

    def _laid_out(self, rows: ir.Value, layout: Layout, name: str) -> ir.Value:
        if not layout.ones:
            return rows
        listed = "_".join(map(str, layout.ones))
        key = ("axes", rows, layout.ones)
        if key not in self._made:
            axes = self._emit.ints(f"axes_{listed}", layout.ones)
            self._made[key] = self._emit.op("Unsqueeze", [rows, axes], name=f"{name}_{listed}")
        return self._made[key]

    def splice(self) -> None:
        """Drop what is dead, and put the new nodes in front of the rest."""
        common.RemoveUnusedNodesPass()(self._model)
        graph = self._model.graph
        nodes = list(self._emit.nodes)
        if nodes:
            self._declare_mask(graph, set(nodes))
        splice(graph, self._emit, before=graph[0] if nodes else None)

    def _declare_mask(self, graph: ir.Graph, new: set[ir.Node]) -> None:
        """Make the attention mask an int64 input of the graph; nodes that read it as another type read a cast."""
        mask, tokens = self.attention_mask, self._interface.input_ids
        if mask is not self._interface.attention_mask:
            mask.shape = ir.Shape(["batch_size", "total_sequence_length"])
            graph.inputs.insert(list(graph.inputs).index(tokens) + 1, mask)
        elif mask.dtype != ir.DataType.INT64:
            old = [use for use in mask.uses() if use[0] not in new]
            cast = make("Cast", [mask], "attention_mask.original", to=mask.dtype)
            for node, index in old:
                node.replace_input_with(index, cast.outputs[0])
            if old:
                graph.insert_before(graph[0], cast)
        mask.type = ir.TensorType(ir.DataType.INT64)


def splice(graph: ir.Graph, emitter: Emitter, *, before: ir.Node | None) -> None:
    """Put the nodes and constants of an emitter into a graph, under their names.

    Args:
        before: where; None for the end.
    """
    nodes = list(emitter.nodes)
    taken = {str(value.name): value for value in _values(graph)}
    called = {node.name: node for node in graph}
    for node in nodes:
        if node.name in called:
            called[node.name].name = f"{node.name}.original"
        for value in node.outputs:
            _free_name(value, taken)
    for value in emitter.initializers:
        _own(graph, value, taken)
    if before is None:
        graph.extend(nodes)
    else:
        graph.insert_before(before, nodes)


def _own(graph: ir.Graph, value: ir.Value, taken: dict[str, ir.Value]) -> None:
    """Register a constant under its name, or read the graph's own where it has the same one."""
    known = graph.initializers.get(str(value.name))
    if known is not None and _is_same(value.const_value, known.const_value):
        ir.convenience.replace_all_uses_with(value, known)
        return
    _free_name(value, taken)
    graph.register_initializer(value)


def _is_same(mine: ir.TensorProtocol | None, theirs: ir.TensorProtocol | None) -> bool:
    """Whether two constants are the same number, or the same few."""
    if mine is None or theirs is None or isinstance(theirs, ir.LazyTensor) or theirs.nbytes > 64:
        return False
    return mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()


def _free_name(value: ir.Value, taken: dict[str, ir.Value]) -> None:
    """Give a value its name, which another one may have to leave."""
    name = str(value.name)
    other = taken.get(name)
    if other is None or other is value:
        taken[name] = value
    elif other.is_graph_input() or other.is_graph_output() or other.is_initializer():
        value.name = _numbered(name, taken)
        taken[value.name] = value
    else:
        other.name = _numbered(f"{name}.original", taken)
        taken[other.name], taken[name] = other, value


def _numbered(name: str, taken: Mapping[str, ir.Value]) -> str:
    """The name with the first number behind it that is not taken."""
    return next(found for count in itertools.count(1) if (found := f"{name}_{count}") not in taken)


def _values(graph: ir.Graph) -> Sequence[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
