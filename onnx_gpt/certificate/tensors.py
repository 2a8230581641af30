"""Digests of a graph's initializers, read from where they lie a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx_ir as ir

from exporter.errors import rejected
from onnx_gpt.certificate import merkle
from onnx_gpt.certificate.files import READERS

PIECE = 1 << 20
"""Bytes that are read at once."""


def tensor_digests(graph: ir.Graph) -> dict[str, str]:
    """What each initializer is, by name, sorted: ``uint8[192,6,16] SHA-256`` of its type, dims and bytes.

    Bytes are those of ONNX's raw data: little endian, row-major, values narrower than a byte packed.

    Raises:
        OnnxGptError: ``onnx-data-invalid`` where a file ends inside a tensor.
    """
    tensors = [
        (name, value.const_value)
        for name, value in sorted(graph.initializers.items())
        if value.const_value is not None
    ]
    with ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(lambda item: _described(item[1]), tensors)
        return dict(zip((name for name, _ in tensors), digests, strict=True))


def merkle_root(leaves: Mapping[str, str]) -> str:
    """The root over tensors sorted by name, each leaf ``name NUL description``, in hexadecimal."""
    data = (f"{name}\0{leaves[name]}".encode() for name in sorted(leaves))
    return merkle.root([merkle.leaf(item) for item in data]).hex()


def _described(tensor: ir.TensorProtocol) -> str:
    hasher = hashlib.sha256()
    for piece in _pieces(tensor):
        hasher.update(piece)
    dims = ",".join(str(int(dim)) for dim in tensor.shape.numpy())
    return f"{tensor.dtype.name.lower()}[{dims}] {hasher.hexdigest()}"


def _pieces(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    """The tensor's bytes. Those in a file are read and not mapped: pages of a map would count as our memory."""
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.tobytes()
        return
    left = tensor.nbytes
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        while left:
            piece = file.read(min(left, PIECE))
            if not piece:
                raise rejected(
                    "onnx-data-invalid", f"{tensor.path} ends inside {tensor.name!r}", "copy the file again"
                )
            left -= len(piece)
            yield piece
