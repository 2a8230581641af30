"""The wire format of an ONNX file, walked so that large tensors stay in the file.

A protobuf message is a row of fields, each a tag ``number << 3 | wire type`` and a value; a nested message is a field
of wire type 2, its length before it. `slim` copies a ModelProto and leaves out the contents of large tensors: such a
TensorProto gets ``external_data`` that points to where its bytes lie in the very same file. Memory follows the graph
and not the weights; protobuf's own limit of 2 GB does not apply to what is left out.

Encoding: https://protobuf.dev/programming-guides/encoding/. Field numbers: onnx.proto.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx

from exporter.errors import OnnxGptError, rejected

INLINE = 1024
"""Bytes up to which the contents of a tensor stay in the message."""
LIMIT = 512 << 20
"""Bytes of a graph without its large tensors. A decoder of 100 layers as torch writes it has 20 MB."""
DEPTH = 32
"""Messages within messages: a node of an If in a Loop in a function is at 12."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
"""Which fields of a message hold messages in which tensors may lie."""

RAW_DATA, FLOAT_DATA, DATA_TYPE, EXTERNAL_DATA = 9, 4, 2, 13


def slim(path: Path) -> bytes:
    """A ModelProto equal to the file's, except that large tensors are external ones that lie in the file.

    Raises:
        OnnxGptError: ``onnx-invalid`` where the file is no message, or ends within one; ``file-too-large`` where the
            graph itself is beyond `LIMIT`.
    """
    with path.open("rb") as file:
        return _Walk(file, path).message("model", 0, os.fstat(file.fileno()).st_size, 0)


@dataclasses.dataclass(frozen=True)
class _Field:
    """One field: where it begins, where its value is, and the value itself where it is a number."""

    number: int
    wire: int
    start: int
    body: int
    stop: int
    value: int


class _Walk:
    """One walk over a file. Numbers are read through a window of it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._window, self._at = b"", 0
        self._written = 0

    def message(self, kind: str, start: int, stop: int, depth: int) -> bytes:
        if depth > DEPTH:
            raise self._invalid(f"messages are nested more than {DEPTH} deep")
        if kind == "tensor":
            return self._tensor(start, stop)
        children = CHILDREN[kind]
        out = bytearray()
        for field in self._fields(start, stop):
            child = children.get(field.number)
            if child is not None and field.wire == BYTES and field.stop - field.body > INLINE:
                _append(out, field.number, self.message(child, field.body, field.stop, depth + 1))
            else:
                out += self._copy(field.start, field.stop)
        return bytes(out)

    def _tensor(self, start: int, stop: int) -> bytes:
        fields = list(self._fields(start, stop))
        numbers = [field.number for field in fields]
        held = [field for field in fields if field.number in (RAW_DATA, FLOAT_DATA) and field.wire == BYTES]
        external = EXTERNAL_DATA in numbers
        if external and held:
            raise self._invalid("a tensor has its data both in the file and elsewhere")
        if len(held) > 1:
            raise self._invalid("a tensor has its data twice")
        left = held[0] if held and held[0].stop - held[0].body > INLINE else None
        if left is not None and left.number == FLOAT_DATA and not self._is_float(fields):
            left = None
        kept = b"".join(self._copy(field.start, field.stop) for field in fields if field is not left)
        if left is None:
            return kept
        proto = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        size = left.stop - left.body
        for key, value in (("location", self._path.name), ("offset", left.body), ("length", size)):
            proto.external_data.add(key=key, value=str(value))
        return kept + bytes(proto.SerializeToString())

    def _is_float(self, fields: list[_Field]) -> bool:
        """Whether packed ``float_data`` are the tensor's elements: complex numbers are kept there too."""
        return any(field.number == DATA_TYPE and field.value == onnx.TensorProto.FLOAT for field in fields)

    def _fields(self, start: int, stop: int) -> Iterator[_Field]:
        at = start
        while at < stop:
            tag, body = self._varint(at, stop)
            number, wire, value = tag >> 3, tag & 7, 0
            if wire == VARINT:
                value, end = self._varint(body, stop)
            elif wire == BYTES:
                length, body = self._varint(body, stop)
                end = body + length
            elif wire in (FIXED32, FIXED64):
                end = body + (4 if wire == FIXED32 else 8)
            else:
                raise self._invalid(f"byte {at} is no field of a message")
            if end > stop or number == 0:
                raise self._invalid(f"the field at byte {at} ends beyond the message that holds it")
            yield _Field(number, wire, at, body, end, value)
            at = end

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """A number of up to ten bytes, least significant seven bits first, and where it ends."""
        value = 0
        for i in range(10):
            if at + i >= stop:
                break
            byte = self._byte(at + i)
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value & (2**64 - 1), at + i + 1
        raise self._invalid(f"the number at byte {at} does not end")

    def _byte(self, at: int) -> int:
        if not self._at <= at < self._at + len(self._window):
            self._file.seek(at)
            self._window, self._at = self._file.read(4096), at
            if not self._window:
                raise self._invalid("it became shorter while it was read")
        return self._window[at - self._at]

    def _copy(self, start: int, stop: int) -> bytes:
        self._written += stop - start
        if self._written > LIMIT:
            raise rejected(
                "file-too-large",
                f"the graph of {str(self._path)!r} takes more than {LIMIT >> 20} MiB without its large tensors",
                "check that this is a model, and export its weights as raw data",
            )
        if self._at <= start and stop <= self._at + len(self._window):
            return self._window[start - self._at : stop - self._at]
        self._file.seek(start)
        return self._file.read(stop - start)

    def _invalid(self, what: str) -> OnnxGptError:
        return rejected(
            "onnx-invalid", f"{str(self._path)!r} is not a readable ONNX model: {what}", "export it again"
        )


def _append(out: bytearray, number: int, body: bytes) -> None:
    for value in (number << 3 | BYTES, len(body)):
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    out += body
