"""Calls that tell meanings apart, and running a piece of the island on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graph_passes.control.interface import Interface
from graph_passes.control.island import Island
from graph_passes.inference import dims, facts
from graph_passes.proof.evaluate import CannotEvaluate, evaluate
from graph_passes.proof.subgraph import Subgraph

TABLES = 1 << 26
"""Bytes of constants that one edge may read: cosines of 128K positions."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """One call of a decoder.

    Attributes:
        past: tokens in the cache, P.
        valid: int64 ``[B, P + S]``, 1 for a real token.
        padding: what the call is, for messages.
    """

    past: int
    valid: np.ndarray
    padding: str = "no"

    @property
    def batch(self) -> int:
        return int(self.valid.shape[0])

    @property
    def total(self) -> int:
        return int(self.valid.shape[1])

    @property
    def length(self) -> int:
        return self.total - self.past

    @property
    def real(self) -> np.ndarray:
        """bool ``[B, S]``: the query is no padding."""
        real: np.ndarray = self.valid[:, self.past :] == 1
        return real

    @property
    def counted(self) -> np.ndarray:
        """int64 ``[B, S]``: positions counted over the real tokens."""
        counted: np.ndarray = np.maximum(np.cumsum(self.valid, axis=1) - 1, 0)[:, self.past :]
        return counted

    @property
    def places(self) -> np.ndarray:
        """int64 ``[S]``: places of the S tokens, padding counted too."""
        return np.arange(self.past, self.total)

    def __str__(self) -> str:
        return f"B={self.batch} S={self.length} P={self.past}, {self.padding} padding"


def whole(batch: int, length: int, past: int = 0) -> Probe:
    """A call without padding."""
    return Probe(past, np.ones((batch, past + length), np.int64))


def padded(past: int, rows: Sequence[str], padding: str) -> Probe:
    """A call whose rows are written as ``"00111"``."""
    return Probe(past, np.array([[int(c) for c in row] for row in rows], np.int64), padding)


PREFILL = (
    whole(2, 5),
    padded(0, ["1111111", "1111110", "1110000"], "right"),
    padded(0, ["0011111", "1111111", "0000001"], "left"),
    padded(0, ["1101011", "1111001"], "mixed"),
    whole(1, 1),
)
"""Calls without a past."""

DECODE = (
    padded(4, ["110011111", "111111100"], "right"),
    padded(4, ["001111111", "111111111"], "left"),
    padded(6, ["1110001", "1111111", "0000111"], "mixed"),
    whole(1, 1, 9),
)
"""Calls with one."""


class Runner:
    """Runs pieces of one graph's island.

    Attributes:
        has_past: the graph has a cache.
        pads: the graph is told what is padding.
        padding_counts: what becomes of padding can be seen by real tokens.
        probes: calls that this graph can take.
    """

    def __init__(self, model: ir.Model, interface: Interface, island: Island) -> None:
        self._model = model
        self._interface = interface
        self._stops = (*interface.controls, *island.lengths)
        self.has_past = bool(interface.caches)
        self.pads = interface.attention_mask is not None and bool(interface.attention_mask.uses())
        self.padding_counts = False
        self.probes: tuple[Probe, ...] = PREFILL + DECODE if self.has_past else PREFILL
        if not self.pads:
            self.probes = tuple(probe for probe in self.probes if probe.padding == "no")
            self.probes += (whole(3, 7), *([whole(3, 7, 4)] if self.has_past else []))

    def piece(self, values: Sequence[ir.Value]) -> Subgraph:
        return Subgraph.cut(self._model, values, self._stops)

    def run(
        self, piece: Subgraph, probe: Probe, stand_ins: Mapping[ir.Value, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Outputs of a piece on a call.

        Args:
            stand_ins: arrays for initializers that are not to be read.

        Raises:
            CannotEvaluate: the piece cannot run, or reads a length that nobody knows.
        """
        feeds = {value: self._feed(value, probe) for value in piece.inputs}
        return evaluate(piece, feeds | dict(stand_ins or {}), max_bytes=TABLES)

    def _feed(self, value: ir.Value, probe: Probe) -> np.ndarray:
        shape = self._shape_of_input(value, probe)
        if shape is None:
            return self._length(value, probe)
        array = np.zeros(shape, np.int64)
        if value is self._interface.attention_mask:
            array = probe.valid
        elif value is self._interface.position_ids:
            array = probe.counted
        elif value is self._interface.cache_position:
            array = probe.places
        assert value.dtype is not None
        return array.astype(value.dtype.numpy())

    def _length(self, value: ir.Value, probe: Probe) -> np.ndarray:
        """What a Shape or Size node of the data gives."""
        node = value.producer()
        source = node.inputs[0] if node is not None else None
        if node is None or source is None:
            raise CannotEvaluate(f"it reads {value.name}, which is no control input")
        sizes = self._shape_of_input(source, probe)
        if sizes is None:
            sizes = self._known_dims(source, probe)
        if node.op_type == "Size":
            return np.array(int(np.prod(sizes)), np.int64)
        start, end = (
            node.attributes[name].value if name in node.attributes else None for name in ("start", "end")
        )
        return np.array(sizes[start:end], np.int64)

    def _known_dims(self, value: ir.Value, probe: Probe) -> tuple[int, ...]:
        lengths = {dims.BATCH: probe.batch, dims.SEQUENCE: probe.length, dims.PAST: probe.past}
        sizes = facts.dims(value)
        try:
            return tuple(dims.evaluate(size, lengths) for size in sizes or ())
        except KeyError as unknown:
            told = f"the shape of {value.name}, {' x '.join(map(str, sizes or ()))}"
            raise CannotEvaluate(f"it reads {told}, of which {unknown} is unknown") from unknown

    def _shape_of_input(self, value: ir.Value, probe: Probe) -> tuple[int, ...] | None:
        """Shape of a graph input on a call; None for other values."""
        inputs = self._interface
        if value in (inputs.input_ids, inputs.position_ids):
            return probe.batch, probe.length
        if value is inputs.attention_mask:
            return probe.batch, probe.total
        if value is inputs.cache_position:
            return (probe.length,)
        if value in inputs.caches and value.shape is not None:
            free = {0: probe.batch, inputs.past_axis: probe.past}
            if all(isinstance(dim, int) or i in free for i, dim in enumerate(value.shape)):
                return tuple(dim if isinstance(dim, int) else free[i] for i, dim in enumerate(value.shape))
        return None
