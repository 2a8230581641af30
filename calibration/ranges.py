"""How large every value of a float decoder gets on text, and what its norms do with what they read.

The graph runs layer by layer (`calibration.segments`), each over all windows; memory is one layer and one batch of
tokens, however long the text. Values inside the model's own functions (a gated activation) are not seen: they are no
larger than what goes in and out.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.collecting import Stream, load, run
from calibration.progress import Advance
from calibration.segments import Segment, cut
from calibration.statistics.value_range import Range, ValueRange
from graph_passes.inference.facts import annotate
from graph_passes.lowering.half import HALF_MAX
from graph_passes.matching import attribute, role_of

NORMS: Mapping[str, tuple[int, ...]] = {
    "LayerNormalization": (0,),
    "RMSNormalization": (0,),
    "SkipLayerNormalization": (0, 1, 4),
    "SkipSimplifiedLayerNormalization": (0, 1, 3),
}
"""For every norm, the inputs that it adds up before it takes squares."""
HALF_TINY = 2.0**-24
"""Smallest float16 above 0."""


@dataclasses.dataclass(frozen=True)
class Edge:
    """A float value of the graph.

    Attributes:
        name: of the value.
        role: of the node that makes it.
        op_type: of that node.
        range: of its values.
    """

    name: str
    role: str
    op_type: str
    range: Range


@dataclasses.dataclass(frozen=True)
class NormRange:
    """What a norm reads, in rows of channels.

    Attributes:
        role: of the norm.
        epsilon: that it adds to the mean of squares.
        square: largest Σ x² of a row; beyond 65504 a sum in float16 overflows.
        mean_square: smallest mean of squares of a row that is not all zeros.
        overflowing: share of rows whose squares sum to more than 65504.
        dominated: share of rows whose mean of squares is below epsilon, which then decides their size.
        absorbed: share of values other than 0 whose square is 0 in float16.
    """

    role: str
    epsilon: float
    square: float
    mean_square: float
    overflowing: float
    dominated: float
    absorbed: float


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What one text says of a graph.

    Attributes:
        tokens: that went through it.
        edges: in the order of the graph.
        norms: likewise.
    """

    tokens: int
    edges: tuple[Edge, ...]
    norms: tuple[NormRange, ...]

    @property
    def largest(self) -> Edge:
        """The edge with the largest value."""
        return max(self.edges, key=lambda edge: edge.range.largest)

    @property
    def not_finite(self) -> tuple[Edge, ...]:
        """Edges with NaN or infinity; the first is where it is made."""
        return tuple(edge for edge in self.edges if edge.range.not_finite)

    def beyond_half(self, headroom: float = 1.0) -> tuple[Edge, ...]:
        """Edges that float16 does not hold, with so many times the room that this text takes."""
        return tuple(edge for edge in self.edges if edge.range.half_headroom < headroom)


def ranges(
    model: ir.Model, tokens: np.ndarray, folder: Path | None = None, advance: Advance | None = None
) -> Ranges:
    """Run a float graph on text and measure every float value that its nodes make.

    Args:
        model: a decoder with roles, canonical or fused, not quantized; types and shapes that it does not state yet are
            written into it, and its weights are read.
        tokens: int64 ``[N, S]``, every one real; windows are independent of one another.
        folder: scratch, made and left empty; one of the system's by default.
        advance: told of progress.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="onnx-gpt-ranges-") as made:
            return ranges(model, tokens, Path(made), advance)
    folder.mkdir(parents=True, exist_ok=True)
    annotate(model)  # what goes from one piece to the next has to have a type
    stream = Stream(tokens, folder)
    edges: dict[str, Edge] = {}
    norms: list[NormRange] = []
    segments = cut(model)
    for i, segment in enumerate(segments):
        if advance is not None:
            advance(i, len(segments), segment.name)
        found, read = _measure(segment, stream, folder)
        edges |= found
        norms += read
    return Ranges(int(tokens.size), tuple(edges.values()), tuple(norms))


def _measure(segment: Segment, stream: Stream, folder: Path) -> tuple[dict[str, Edge], list[NormRange]]:
    nodes = {str(v.name): node for node in segment.model.graph for v in node.outputs if _is_float(v)}
    seen = {name: ValueRange.empty() for name in nodes}
    readers = [_Norm(node, segment.model.graph) for node in segment.model.graph if node.op_type in NORMS]
    piece = load(segment, list(nodes), folder / "piece")
    for batch, values in run(piece, segment, stream):
        for name, statistic in seen.items():
            if values[name].dtype == np.float32:  # of some values the graph does not state a type
                statistic.add(values[name])
        for reader in readers:
            reader.add(values)
        stream.put(batch, {name: values[name] for name in segment.outgoing})
    stream.advance(segment.passing)
    edges = {
        name: Edge(name, role_of(nodes[name]), nodes[name].op_type, statistic.finish())
        for name, statistic in seen.items()
        if statistic.count
    }
    return edges, [reader.finish() for reader in readers if reader.rows]


def _is_float(value: ir.Value) -> bool:
    return bool(value.name) and (value.dtype is None or value.dtype == ir.DataType.FLOAT)


class _Norm:
    """Rows that one norm reads, as they come."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        inputs = [node.inputs[i] for i in NORMS[node.op_type] if i < len(node.inputs)]
        self.role = role_of(node)
        self.epsilon = float(attribute(node, "epsilon", 1e-5))
        self._values = [str(v.name) for v in inputs if v is not None and v.const_value is None]
        tensors = [v.const_value for v in inputs if v is not None and v.const_value is not None]
        self._bias = sum((tensor.numpy() for tensor in tensors), np.zeros(1, np.float32))
        self._centred = node.op_type in ("LayerNormalization", "SkipLayerNormalization")
        self.rows = 0
        self._square, self._least = 0.0, float("inf")
        self._overflowing = self._dominated = self._absorbed = self._counted = 0

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Values of one batch, by name."""
        if not all(name in values for name in self._values):
            return
        x = sum((values[name] for name in self._values), self._bias)
        x = x.reshape(-1, x.shape[-1])
        if self._centred:
            x = x - x.mean(axis=-1, keepdims=True)
        squares = np.einsum("tk,tk->t", x, x, dtype=np.float64)
        means = squares / x.shape[-1]
        real = means > 0
        self.rows += len(x)
        self._square = max(self._square, float(squares.max(initial=0.0)))
        self._least = min(self._least, float(means[real].min(initial=float("inf"))))
        self._overflowing += int((squares > HALF_MAX).sum())
        self._dominated += int((means < self.epsilon).sum())
        nonzero = x != 0
        self._absorbed += int((nonzero & (np.abs(x) < (HALF_TINY / 2) ** 0.5)).sum())
        self._counted += int(nonzero.sum())

    def finish(self) -> NormRange:
        return NormRange(
            self.role,
            self.epsilon,
            self._square,
            self._least,
            self._overflowing / self.rows,
            self._dominated / self.rows,
            self._absorbed / max(1, self._counted),
        )
