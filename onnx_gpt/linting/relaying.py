"""Weights in other files: planned from what the graph says of them, copied a piece at a time.

Every tensor that lies outside, or is too large for the message, goes into files beside the model, in order; two tensors
that share a place share it afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import onnx
import onnx_ir as ir

from exporter.errors import rejected, unsupported
from exporter.onnx_format.external import tensors_of
from onnx_gpt.bundle.writing import ALIGNMENT, pieces, point
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.graph_file import GraphFile


@dataclasses.dataclass(frozen=True)
class Move:
    """A tensor's way from one file into another."""

    source: Path
    start: int
    nbytes: int
    chunk: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the tensors of one model go.

    Attributes:
        proto: the model, its tensors pointing to their old places.
        moves: by old place (location, offset, length).
    """

    proto: onnx.ModelProto
    moves: dict[tuple[str, int, int], Move]

    @property
    def chunks(self) -> int:
        """How many files of weights there will be."""
        return max((move.chunk + 1 for move in self.moves.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes that the files will have, up to padding."""
        return sum(move.nbytes for move in self.moves.values()) + int(self.proto.ByteSize())


def plan(graph: GraphFile, limit: int | None) -> Layout:
    """Where each tensor of a model goes, in files of at most ``limit`` bytes.

    Raises:
        OnnxGptError: ``tensor-too-large`` (exit 3) for one that no file holds; ``onnx-invalid``.
    """
    try:
        proto = ir.serde.serialize_model(graph.model)
    except ir.serde.SerdeError as error:  # a message that could be read, and says what no message can
        raise rejected(
            "onnx-invalid",
            f"{graph.name} cannot be written again: {error.__cause__ or error!s:.200}",
            "export it again",
        ) from error
    moves: dict[tuple[str, int, int], Move] = {}
    chunk, end = 0, 0
    for tensor in proto.graph.initializer:
        place = _place(tensor)
        if place is None or place in moves:
            continue
        location, start, nbytes = place
        if limit is not None and nbytes > limit:
            raise unsupported(
                "tensor-too-large",
                f"{tensor.name!r:.200} has {nbytes} bytes, and a file of weights may have {limit}",
                "quantize the model",
            )
        offset = -(-end // ALIGNMENT) * ALIGNMENT if nbytes >= ALIGNMENT else end
        if limit is not None and offset + nbytes > limit:
            chunk, offset = chunk + 1, 0
        moves[place] = Move(graph.path.parent / location, start, nbytes, chunk, offset)
        end = offset + nbytes
    return Layout(proto, moves)


def write(draft: Draft, graph: GraphFile, layout: Layout, folder: Path) -> None:
    """Write a model and its files of weights below a folder."""
    model = folder / draft.place(graph)
    model.parent.mkdir(parents=True, exist_ok=True)
    initializers = list(layout.proto.graph.initializer)
    del layout.proto.graph.initializer[:]
    for tensor in tensors_of(layout.proto):  # constants in nodes, which must be in the message
        _take_in(graph, tensor)
    for tensor in initializers:
        place = _place(tensor)
        if place is not None:
            move = layout.moves[place]
            point(tensor, draft.data_name(graph, move.chunk), move.offset, move.nbytes)
    layout.proto.graph.initializer.extend(initializers)
    for i in range(layout.chunks):
        with (model.parent / draft.data_name(graph, i)).open("wb") as out:
            for move in layout.moves.values():
                if move.chunk == i:
                    out.seek(move.offset)
                    out.writelines(pieces(move.source, move.start, move.nbytes))
    model.write_bytes(layout.proto.SerializeToString(deterministic=True))


def _place(tensor: onnx.TensorProto) -> tuple[str, int, int] | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    size = -(-math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8)
    return entries["location"], int(entries.get("offset", 0)), int(entries.get("length", size))


def _take_in(graph: GraphFile, tensor: onnx.TensorProto) -> None:
    place = _place(tensor)
    if place is None:
        return
    location, start, nbytes = place
    tensor.raw_data = b"".join(pieces(graph.path.parent / location, start, nbytes))
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
