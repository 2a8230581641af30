"""What a decoder computes from its control inputs alone: positions, masks and the start of the logits.

Control inputs are the lengths of ``input_ids`` and the values of ``attention_mask``. One instance writes each of
these once for a graph, whoever the graph comes from.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from exporter.emitter import Emitter

END = 2**63 - 1
"""How Slice spells the end."""

MASKED = -30000.0
"""Added to the score of a key that is not seen, where a mask is a bias. Its exponential is 0 beside that of any key
that is, a row that sees none stays finite, and float16 can hold it."""

KEEP = "num_logits_to_keep"
"""The one input that has a default in the graph's contract: 0, which is all."""


class Control:
    """Masks, positions and biases by position, written where they are first asked for.

    Args:
        emitter: writes the nodes.
        input_ids: int64 ``[B, S]``; only its length is read.
        attention_mask: int64 ``[B, T]``, 1 for a real token.
    """

    def __init__(self, emitter: Emitter, input_ids: ir.Value, attention_mask: ir.Value) -> None:
        self._emitter = emitter
        self._input_ids = input_ids
        self._attention_mask = attention_mask
        self._masks: dict[int | None, ir.Value] = {}
        self._biases: dict[tuple[ir.Value, bool], ir.Value] = {}

    @functools.cached_property
    def total(self) -> ir.Value:
        """T, int64 ``[1]``."""
        return self._emitter.op("Shape", [self._attention_mask], name="total", start=1, end=2)

    @functools.cached_property
    def past(self) -> ir.Value:
        """T − S, int64 ``[1]``."""
        total = self.total
        length = self._emitter.op("Shape", [self._input_ids], name="length", start=1, end=2)
        return self._emitter.op("Sub", [total, length], name="past")

    @functools.cached_property
    def all_positions(self) -> ir.Value:
        """Of the T tokens, counted over the real ones, int64 ``[B, T]``; 0 where padding comes first."""
        emit, one = self._emitter, self._emitter.ints("axis_1", [1])
        axis = emit.scalar("axis_1_scalar", 1)
        counted = emit.op("CumSum", [self._attention_mask, axis], name="positions.count")
        positions = emit.op("Sub", [counted, one], name="positions.total")
        return emit.op("Max", [positions, emit.ints("axis_0", [0])], name="positions.clipped")

    @functools.cached_property
    def positions(self) -> ir.Value:
        """Of the S tokens, int64 ``[B, S]``."""
        emit, past, one = self._emitter, self.past, self._emitter.ints("axis_1", [1])
        end = emit.ints("int64_max", [END])
        return emit.op("Slice", [self.all_positions, past, end, one], name="positions")

    def bias(self, table: ir.Value, *, by_place: bool) -> ir.Value:
        """``table[j] − table[i]`` for query i and key j, float32 ``[B, H, S, T]``. Made once for each table.

        Args:
            table: ``[context, H]``, what each head adds to the score of a key at a position.
            by_place: positions are columns of the cache, and the result is ``[H, S, T]``; else they are counted over
                the real tokens.
        """
        if (table, by_place) not in self._biases:
            emit, name = self._emitter, str(table.name)
            last, before = emit.ints("axis_last", [-1]), emit.ints("axis_before_last", [-2])
            if by_place:
                start, axis = emit.ints("axis_0", [0]), emit.ints("axis_0", [0])
                rows = emit.op("Slice", [table, start, self.total, axis], name=f"{name}.rows")
            else:
                places = emit.op("Unsqueeze", [self.all_positions, last], name=f"{name}.places")
                rows = emit.op("GatherND", [table, places], name=f"{name}.rows")
            perm = [1, 0] if by_place else [0, 2, 1]
            of_keys = emit.op("Transpose", [rows], name=f"{name}.of_keys", perm=perm)
            end = emit.ints("int64_max", [END])
            of_queries = emit.op("Slice", [of_keys, self.past, end, last], name=f"{name}.of_queries")
            keys = emit.op("Unsqueeze", [of_keys, before], name=f"{name}.keys")
            queries = emit.op("Unsqueeze", [of_queries, last], name=f"{name}.queries")
            self._biases[table, by_place] = emit.op("Sub", [keys, queries], name=f"{name}.bias")
        return self._biases[table, by_place]

    def mask(self, window: int | None) -> ir.Value:
        """bool ``[B, 1, S, T]``: query s may see key t. Made once for each window."""
        if window not in self._masks:
            emit = self._emitter
            name = "mask" if window is None else f"mask.window_{window}"
            seen = self._causal(name, window)
            valid = emit.op("Cast", [self._attention_mask], name=f"{name}.valid", to=ir.DataType.BOOL)
            valid = emit.op("Unsqueeze", [valid, emit.ints("axes_1_2", [1, 2])], name=f"{name}.valid_4d")
            self._masks[window] = emit.op("And", [seen, valid], name=name)
        return self._masks[window]

    def _causal(self, name: str, window: int | None) -> ir.Value:
        """bool ``[S, T]``: key t is not after query s, and within its window."""
        emit = self._emitter
        zero, one = emit.scalar("zero", 0), emit.scalar("one", 1)
        total = emit.op("Squeeze", [self.total], name=f"{name}.total")
        past = emit.op("Squeeze", [self.past], name=f"{name}.past")
        keys = emit.op("Range", [zero, total, one], name=f"{name}.keys")
        queries = emit.op("Range", [past, total, one], name=f"{name}.queries")
        queries = emit.op("Unsqueeze", [queries, emit.ints("axis_1", [1])], name=f"{name}.queries_column")
        seen = emit.op("LessOrEqual", [keys, queries], name=f"{name}.causal")
        if window is None:
            return seen
        width = emit.ints(f"window_{window}", [window])
        oldest = emit.op("Sub", [queries, width], name=f"{name}.oldest")
        recent = emit.op("Greater", [keys, oldest], name=f"{name}.recent")
        return emit.op("And", [seen, recent], name=f"{name}.causal_recent")


def start_of_logits(emitter: Emitter) -> ir.Value:
    """Start of the logits' slice, int64 ``[1]``: −n for the last n tokens, and −0 = 0 for all of them.

    n is the optional input `KEEP`, 0 where it is not fed.
    """
    keep = emitter.optional_input(KEEP, 0)
    negative = emitter.op("Neg", [keep], name="logits.start")
    return emitter.op("Reshape", [negative, emitter.ints("shape_1", [1])], name="logits.start_1d")
