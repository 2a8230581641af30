"""An ONNX file to a float32 graph whose weights have not been read."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from exporter.errors import OnnxGptError, rejected
from exporter.onnx_format.external import check_tensors
from exporter.onnx_format.halves import widen
from exporter.onnx_format.structure import check_structure, sort_nodes
from exporter.onnx_format.weights import take_weights
from exporter.onnx_format.wire import slim


def read_file(path: Path) -> ir.Model:
    """The graph as it is in the file; tensors stay there.

    Raises:
        OnnxGptError: ``onnx-invalid`` and what the modules of this package say of a bad file.
    """
    try:
        proto = onnx.ModelProto.FromString(slim(path))
    except DecodeError as error:
        raise _invalid(path, f"it is no protobuf message ({error})") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise _invalid(path, "it holds no graph")
    check_tensors(proto, path.parent)
    sort_nodes(proto.graph)
    check_structure(proto)
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # whatever it would warn of has been refused above
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # the IR's layers raise many kinds for a message that makes no sense
        raise _invalid(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    finally:
        logger.setLevel(level)
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def read_graph(path: Path) -> ir.Model:
    """The file's graph in float32, its weights as expressions.

    Raises:
        OnnxGptError: see `read_file`; ``onnx-feature`` (exit 3), ``weights-dtype`` (exit 3).
    """
    model = read_file(path)
    take_in(model)
    return model


def take_in(model: ir.Model) -> None:
    """Bring a graph that somebody else made to float32, its weights as expressions, in place.

    Raises:
        OnnxGptError: ``weights-dtype`` (exit 3).
    """
    take_weights(model)
    widen(model)


def _invalid(path: Path, what: str) -> OnnxGptError:
    return rejected("onnx-invalid", f"{str(path)!r} is not a readable ONNX model: {what}", "export it again")
