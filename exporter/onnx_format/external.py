"""Tensors of a model file: every one has the bytes that its type and dims take, inside the model's folder.

External data (https://onnx.ai/onnx/repo-docs/ExternalData.html) is a path, an offset and a length that anybody may have
written. Nothing outside the folder is opened, and nothing is allocated by what a file says before it is checked here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir

from exporter.errors import OnnxGptError, rejected, unsupported
from exporter.sources._files import unreadable

MAX_RANK = 16


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the contents of a tensor lie."""

    path: Path
    offset: int
    length: int


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, attributes, those of bodies and functions.

    Raises:
        OnnxGptError: ``onnx-feature`` (exit 3) for sparse tensors.
    """
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from itertools.chain.from_iterable(map(_of_node, function.node))
        yield from itertools.chain.from_iterable(map(_of_attribute, function.attribute_proto))


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    if graph.sparse_initializer:
        raise _sparse()
    yield from graph.initializer
    yield from itertools.chain.from_iterable(map(_of_node, graph.node))


def _of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    return itertools.chain.from_iterable(map(_of_attribute, node.attribute))


def _of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise _sparse()
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("g"):
        yield from _of_graph(attribute.g)
    yield from itertools.chain.from_iterable(map(_of_graph, attribute.graphs))


def _sparse() -> OnnxGptError:
    return unsupported("onnx-feature", "the graph holds sparse tensors", "store its weights densely")


def check_tensors(model: onnx.ModelProto, folder: Path) -> None:
    """Check all tensors of a model of a folder.

    Raises:
        OnnxGptError: ``path-escapes``, ``file-irregular``, ``file-unreadable``; ``onnx-data-missing``;
            ``onnx-data-invalid`` for a tensor whose bytes are too few, too many, shared in part with another's, or
            beyond the end of their file; ``onnx-feature`` (exit 3).
    """
    home = folder.resolve()
    files: dict[str, tuple[Path, int]] = {}
    places: list[tuple[Place, str]] = []
    for tensor in tensors_of(model):
        size = _nbytes(tensor)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
                raise _data(tensor.name, f"takes {size} bytes and has {len(tensor.raw_data)}")
            continue
        location, offset, length = _entries(tensor, size)
        if location not in files:
            files[location] = _file(home, location)
        path, end = files[location]
        if length != size:
            raise _data(tensor.name, f"takes {size} bytes, {length} are said to be in {location!r}")
        if offset + length > end:
            raise _data(tensor.name, f"ends at byte {offset + length} of {location!r}, which has {end}")
        places.append((Place(path, offset, length), tensor.name))
    _refuse_overlaps(places)


def _nbytes(tensor: onnx.TensorProto) -> int:
    if len(tensor.dims) > MAX_RANK or any(dim < 0 for dim in tensor.dims):
        raise _data(tensor.name, f"has the dims {list(tensor.dims)[:MAX_RANK]}")
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise _data(tensor.name, f"has a type that ONNX does not know, {tensor.data_type}") from None
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or dtype == ir.DataType.UNDEFINED:
            raise _data(tensor.name, f"has the type {dtype.name}")
        return 0
    return -(-int(math.prod(tensor.dims)) * dtype.bitwidth // 8)


def _entries(tensor: onnx.TensorProto, size: int) -> tuple[str, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(text, str) for text in (*entries, *entries.values())):
        raise _data(tensor.name, "has external data described in bytes that are no text")
    numbers = []
    for key, default in (("offset", 0), ("length", size)):
        text = entries.get(key, str(default))
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise _data(tensor.name, f"has the {key} {text!r:.60}")
        numbers.append(int(text))
    return entries.get("location", ""), numbers[0], numbers[1]


def _file(home: Path, location: str) -> tuple[Path, int]:
    """A file of the model's folder, or of a folder in it, by its relative path; links must not lead out."""
    parts = PurePosixPath(location).parts
    escapes = not parts or location.startswith("/") or ".." in parts or "\\" in location
    if escapes or not location.isprintable() or Path(location).is_absolute():
        raise rejected(
            "path-escapes",
            f"a tensor lies in {location!r:.200}, which is not a path within the model's folder",
            "put the data beside the model, and export it again",
        )
    try:
        path = home.joinpath(*parts).resolve()
        if not path.is_relative_to(home):
            raise rejected(
                "path-escapes",
                f"{location!r} is a link to {str(path)!r}, outside the model's folder",
                "replace the link by the file that it leads to",
            )
        if not path.exists():
            raise rejected(
                "onnx-data-missing",
                f"the model's weights are in {location!r}, which is not beside it",
                "copy the data file into the folder of the model",
            )
        if not path.is_file():
            raise rejected(
                "file-irregular", f"{str(path)!r} is not a regular file", "put the file itself there"
            )
        return path, path.stat().st_size
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle
        raise unreadable(home / location, error) from error


def _refuse_overlaps(places: Iterable[tuple[Place, str]]) -> None:
    """Two tensors may be the same bytes; they may not share some."""
    ordered = sorted(places, key=lambda item: (str(item[0].path), item[0].offset, -item[0].length))
    for (a, first), (b, second) in itertools.pairwise(ordered):
        if a.path == b.path and a != b and b.length and b.offset < a.offset + a.length:
            raise _data(second, f"shares some of its bytes in {a.path.name!r} with {first!r}")


def _data(name: str, what: str) -> OnnxGptError:
    return rejected("onnx-data-invalid", f"the tensor {name!r:.200} {what}", "export the model again")
