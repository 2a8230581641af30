"""One model file's header: its graph with tensors unread, and where those tensors say they lie."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from exporter.errors import OnnxGptError, first_line, rejected
from exporter.onnx_format.external import check_tensors, tensors_of
from exporter.onnx_format.structure import check_structure, sort_nodes
from exporter.onnx_format.wire import slim

PAST = re.compile(r"past_key_values\.(\d{1,6})\.(key|value)")
TOLD = {"onnx-data-missing", "path-escapes", "file-irregular", "onnx-feature"}
"""Codes of the reader that a folder can be told of; with any other the file is none, and is refused."""


@dataclasses.dataclass(frozen=True)
class GraphFile:
    """A model file.

    Attributes:
        path: of the file.
        name: its path relative to the folder.
        model: the graph; tensors are not read.
        nbytes: of the file.
        data: files that hold tensors, by the location that the graph gives, in the order in which they are met.
        problem: why its tensors or operators cannot be had, where they cannot.
    """

    path: Path
    name: str
    model: ir.Model
    nbytes: int
    data: tuple[str, ...]
    problem: OnnxGptError | None = None

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    @property
    def pasts(self) -> dict[tuple[int, str], ir.Value]:
        """Inputs that are caches by the contract's names: (layer, ``key`` or ``value``) → value."""
        found = ((PAST.fullmatch(str(value.name)), value) for value in self.graph.inputs)
        return {(int(match[1]), match[2]): value for match, value in found if match}

    def input(self, name: str) -> ir.Value | None:
        """An input by name."""
        return next((value for value in self.graph.inputs if value.name == name), None)

    def output(self, name: str) -> ir.Value | None:
        """An output by name."""
        return next((value for value in self.graph.outputs if value.name == name), None)

    @property
    def opset(self) -> int:
        return self.model.graph.opset_imports.get("", 1)


def read_header(path: Path, name: str) -> GraphFile:
    """Read a model file without its tensors.

    Raises:
        OnnxGptError: ``file-irregular``, ``onnx-invalid``, ``onnx-data-invalid``, ``file-too-large``: the file is no
            model, or says what cannot be.
    """
    if not path.is_file():
        raise rejected("file-irregular", f"{str(path)!r} is not a regular file", "put the file itself there")
    try:
        proto = onnx.ModelProto.FromString(slim(path))
    except DecodeError as error:
        raise _invalid(path, f"it is no protobuf message ({error})") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise _invalid(path, "it holds no graph")
    problem = None
    checks: tuple[Callable[[], None], ...] = (
        lambda: check_tensors(proto, path.parent),
        lambda: check_structure(proto),
    )
    sort_nodes(proto.graph)
    for check in checks:
        try:
            check()
        except OnnxGptError as error:
            if error.code not in TOLD:
                raise
            problem = problem or error
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is no part of the graph
            model = ir.serde.deserialize_model(proto)
    except Exception as error:  # the IR's layers raise many kinds for a message that makes no sense
        raise _invalid(path, first_line(error)) from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    return GraphFile(path, name, model, path.stat().st_size, _locations(proto, path.name), problem)


def _locations(proto: onnx.ModelProto, own: str) -> tuple[str, ...]:
    """Other files in which tensors lie; `slim` points to the model file itself for those that are inside."""
    found: dict[str, None] = {}
    for tensor in tensors_of(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            found.setdefault(location)
    return tuple(name for name in found if name != own)


def _invalid(path: Path, what: str) -> OnnxGptError:
    return rejected("onnx-invalid", f"{str(path)!r} is not a readable ONNX model: {what}", "export it again")
