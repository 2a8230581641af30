"""Rows by position: rotary tables and learned positions, told by the rows that a set of calls gets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable
from typing import Literal

import numpy as np
import onnx_ir as ir

from graph_passes.control.probe import Probe, Runner, whole
from graph_passes.inference import dims
from graph_passes.inference.known import Shape
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.subgraph import Subgraph

NOISE = 4e-6
"""How far one cosine may lie from another one of the same angle: kernels treat the end of a row differently."""

Halves = Literal["half", "equal", "opposite", "pairs", "opposite_pairs"]
"""How a table of all channels follows from one of half of them, f: it is f itself, [f, f], [−f, f],
[f₀, f₀, f₁, f₁ …] or [−f₀, f₀, −f₁, f₁ …]."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where batch, tokens and channels are, among the axes of the data that the rows meet.

    Attributes:
        rank: of the data; the batch is its axis 0.
        tokens, channels: axes.
    """

    rank: int
    tokens: int
    channels: int

    @property
    def ones(self) -> tuple[int, ...]:
        """Axes of length 1."""
        return tuple(axis for axis in range(1, self.rank) if axis not in (self.tokens, self.channels))


@dataclasses.dataclass(frozen=True)
class Table:
    """A function of the position alone.

    Attributes:
        rows: ``[context, channels]`` or half as many channels, as `halves` says.
        layout: of the value that holds the rows of a call.
    """

    rows: np.ndarray
    halves: Halves
    layout: Layout

    @functools.cached_property
    def key(self) -> Hashable:
        """Equal for equal tables."""
        return self.rows.dtype.str, self.rows.shape, hashlib.sha256(self.rows.tobytes()).digest()

    @property
    def is_sine(self) -> bool:
        return not self.rows[0].any()


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Rows of a learned table.

    Attributes:
        table: ``[context, E]``, or the same with axes of length 1 around.
        offset: row of position 0.
        layout: of the value that holds the rows of a call.
    """

    table: ir.Value
    offset: int
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Positions:
    """Positions of the tokens themselves, int ``[B, S]``."""


class NoTable(Exception):  # noqa: N818 (it is an answer, not a defect)
    """Values that are no rows by position."""


def table_of(runner: Runner, value: ir.Value, data: Shape, context_length: Callable[[], int]) -> Table | str:
    """The table of a value that multiplies the data, or why it is none.

    Args:
        data: dims of what it multiplies.
        context_length: says how many rows the table has. It is the value itself, on a call of as many tokens.
    """
    piece = runner.piece([value])
    try:
        layout, found = _rows(runner, piece, data)
        every, stored = whole(1, context_length()), context_of(piece)
        if stored is not None and stored < every.length:
            return f"it has rows for {stored} positions, fewer than the {every.length} that are asked for"
        (array,) = runner.run(piece, every)
        rows = _by_token(array, layout, every)[0]
        _check_positions(runner, rows, found)
    except (CannotEvaluate, NoTable) as reason:
        return str(reason)
    halves = _halves(rows)
    return Table(np.ascontiguousarray(_half(rows, halves)), halves, layout)


def lookup_of(runner: Runner, value: ir.Value, data: Shape) -> Lookup | str:
    """The learned positions of a value that is added to the data, or why it is none. The table is not read."""
    piece = runner.piece([value])
    tables = [v for v in piece.initializers() if _is_table(v)]
    if len(tables) != 1:
        return f"it is made of {len(tables)} learned tables"
    size = [dim for dim in _size(tables[0]) if dim != 1]
    if len(size) != 2:
        return f"its table is {list(tables[0].shape or ())}, not one row for each position"
    # quarters below 32, which every float type holds exactly
    stand_in = np.random.default_rng(0).integers(-128, 128, size).astype(np.float32) / 4
    try:
        layout, found = _rows(runner, piece, data, {tables[0]: _stand_in(tables[0], stand_in)})
        first = found[0][1][0, 0]
        same = (stand_in == first).all(axis=1) if first.shape == stand_in[0].shape else np.zeros(1, bool)
        if not same.any():
            raise NoTable("it is no row of its table")
        offset = int(same.argmax())
        every = whole(1, size[0] - offset)
        (array,) = runner.run(piece, every, {tables[0]: _stand_in(tables[0], stand_in)})
        found.append((every, _by_token(array, layout, every)))
        _check_positions(runner, stand_in[offset:], found)
    except (CannotEvaluate, NoTable) as reason:
        return str(reason)
    return Lookup(tables[0], offset, layout)


def positions_of_tokens(runner: Runner, value: ir.Value, context_length: int) -> Positions | str:
    """Whether integers ``[B, S]`` are the positions of the tokens, or why not.

    Args:
        context_length: how many positions there are.
    """
    piece = runner.piece([value])
    try:
        probes = (*runner.probes, whole(1, context_length))
        arrays = [(probe, runner.run(piece, probe)[0]) for probe in probes]
        found = [(probe, np.broadcast_to(array, probe.real.shape)[..., None]) for probe, array in arrays]
        longest = max(probe.total for probe in probes)
        _check_positions(runner, np.arange(longest)[:, None], found)
    except (CannotEvaluate, NoTable, ValueError) as reason:
        return str(reason)
    return Positions()


def context_of(piece: Subgraph) -> int | None:
    """Rows of the tables that a piece reads, where it reads any."""
    rows = []
    for value in piece.initializers():
        shape = [dim for dim in _size(value) if dim != 1]
        if len(shape) == 2 and (_is_table(value) or shape[0] == shape[1]):
            rows.append(shape[0])
    return min(rows) if rows else None


def reads_rows(piece: Subgraph) -> bool:
    """Whether a piece looks something up in a learned or stored table."""
    return any(map(_is_table, piece.initializers()))


def _rows(
    runner: Runner, piece: Subgraph, data: Shape, stand_ins: dict[ir.Value, np.ndarray] | None = None
) -> tuple[Layout, list[tuple[Probe, np.ndarray]]]:
    """``[B, S, channels]`` on every call, and how they lie in the value."""
    arrays = [(probe, runner.run(piece, probe, stand_ins)[0]) for probe in runner.probes]
    layout = _layout(arrays, data)
    return layout, [(probe, _by_token(array, layout, probe)) for probe, array in arrays]


def _layout(arrays: list[tuple[Probe, np.ndarray]], data: Shape) -> Layout:
    """Axes by how they grow: tokens with S, batch with B, channels with neither."""
    rank = len(data)
    shapes = [(1,) * (rank - array.ndim) + array.shape for _, array in arrays]
    if any(len(shape) != rank for shape in shapes):
        raise NoTable(f"its rank is {arrays[0][1].ndim}, that of the data is {rank}")
    lengths, batches = [probe.length for probe, _ in arrays], [probe.batch for probe, _ in arrays]
    columns = [list(column) for column in zip(*shapes, strict=True)]
    tokens = [axis for axis in range(rank) if columns[axis] == lengths]
    still = [axis for axis in range(rank) if len(set(columns[axis])) == 1 and columns[axis][0] > 1]
    if len(tokens) != 1 or not still:
        raise NoTable(
            f"on a call with {arrays[0][0]} its shape is {list(arrays[0][1].shape)}, without rows for tokens"
        )
    array = arrays[0][1].reshape(shapes[0])
    channels = [axis for axis in still if not (array == array.take([0], axis)).all()] or still[-1:]
    layout = Layout(rank, tokens[0], channels[-1])
    others = [axis for axis in range(rank) if axis not in (tokens[0], *still)]
    if any(set(columns[axis]) != {1} and (axis != 0 or columns[axis] != batches) for axis in others):
        raise NoTable(f"on a call with {arrays[0][0]} its shape is {list(arrays[0][1].shape)}")
    if len(channels) != 1 or not 0 < layout.tokens < layout.channels:
        raise NoTable(f"its axes {list(arrays[0][1].shape)} are not batch, tokens and channels in this order")
    if columns[0] != batches and data[0] != dims.symbol(dims.BATCH):
        raise NoTable(f"the first axis of the data is {data[0]}, not the batch")
    return layout


def _by_token(array: np.ndarray, layout: Layout, probe: Probe) -> np.ndarray:
    """``[B, S, channels]``."""
    array = array.reshape((1,) * (layout.rank - array.ndim) + array.shape)
    first = array
    for axis in layout.ones:
        first = first.take([0], axis)
    if not np.array_equal(np.broadcast_to(first, array.shape), array):
        raise NoTable(f"on a call with {probe} it differs from head to head")
    rows = first.reshape(first.shape[0], first.shape[layout.tokens], first.shape[layout.channels])
    return np.broadcast_to(rows, (probe.batch, *rows.shape[1:]))


def _check_positions(runner: Runner, table: np.ndarray, found: list[tuple[Probe, np.ndarray]]) -> None:
    """Whether rows are those of the positions, counted over the real tokens or over all of them."""
    everywhere = runner.padding_counts
    objection = _first_odd(table, found, counted=True, everywhere=everywhere)
    if objection and (everywhere or _first_odd(table, found, counted=False, everywhere=False)):
        raise NoTable(objection)


def _first_odd(
    table: np.ndarray, found: list[tuple[Probe, np.ndarray]], *, counted: bool, everywhere: bool
) -> str | None:
    """The first token, padding among them or not, that does not get the row of its position."""
    for probe, rows in found:
        positions = probe.counted if counted else np.broadcast_to(probe.places, probe.real.shape)
        if positions.max() >= len(table):
            raise NoTable(f"its table ends before position {positions.max()}")
        same = np.abs(rows - table[positions]) <= NOISE
        odd = (probe.real | everywhere) & ~same.all(axis=-1)
        if odd.any():
            row, token = (int(i) for i in np.argwhere(odd)[0])
            position = positions[row, token]
            return f"on a call with {probe} token {token} of row {row} does not get the row of position {position}"
    return None


def _halves(rows: np.ndarray) -> Halves:
    half, rest = divmod(rows.shape[1], 2)
    if rest or not half:
        return "half"
    first, second, even, odd = rows[:, :half], rows[:, half:], rows[:, ::2], rows[:, 1::2]
    kinds: list[tuple[Halves, np.ndarray, np.ndarray]] = [
        ("equal", first, second),
        ("opposite", -first, second),
        ("pairs", even, odd),
        ("opposite_pairs", -even, odd),
    ]
    return next((kind for kind, a, b in kinds if np.array_equal(a, b)), "half")


def _half(rows: np.ndarray, halves: Halves) -> np.ndarray:
    if halves == "half":
        return rows
    return rows[:, rows.shape[1] // 2 :] if halves in ("equal", "opposite") else rows[:, 1::2]


def _is_table(value: ir.Value) -> bool:
    """Whether an initializer is a matrix of floats, whatever axes of length 1 it has besides."""
    tensor = value.const_value
    return (
        tensor is not None and tensor.dtype.is_floating_point() and sum(dim != 1 for dim in _size(value)) == 2
    )


def _size(value: ir.Value) -> tuple[int, ...]:
    """Dims of an initializer."""
    tensor = value.const_value
    assert tensor is not None
    return tuple(int(dim) for dim in tensor.shape.numpy())


def _stand_in(value: ir.Value, array: np.ndarray) -> np.ndarray:
    assert value.const_value is not None
    return np.ascontiguousarray(array).reshape(_size(value)).astype(value.const_value.dtype.numpy())
