"""What to do with a node that makes no sense: the file is to blame, and is told so with the node's name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir

from exporter.errors import rejected


@contextlib.contextmanager
def refusing(node: ir.Node) -> Iterator[None]:
    """Blame a node for what goes wrong inside the block, where its inputs and attributes are looked at.

    A graph that onnx has checked may still pick a row that is not there, or permute axes that are none.

    Raises:
        OnnxGptError: ``onnx-invalid`` (exit 4).
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise rejected(
            "onnx-invalid",
            f"{node.op_type} {node.name!r:.200} cannot be computed from its inputs ({error})",
            "export the model again",
        ) from error
