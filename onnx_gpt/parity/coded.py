"""The quantized weights of a graph, by role: what its codes stand for, without running it.

MatMulNBits and GatherBlockQuantized hold ``w = s · (q − z)`` in blocks of a row, z being half the range where no zero
point is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from calibration.quantization.pack import unpack
from graph_passes.matching import MICROSOFT, attribute, role_of

CHUNK = 8 << 20
"""Numbers that are widened at once."""
OTHERS = frozenset(
    [
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulBnb4",
        "MatMulInteger",
        "QLinearMatMul",
        "QuantizeLinear",
    ]
)
"""Operators that hold codes, or round activations, in ways that are not read here."""


@dataclasses.dataclass(frozen=True)
class Coded:
    """One node that holds codes.

    Attributes:
        kind: how it is used.
        role: of the linear map or the table.
        shape: ``(N, K)``.
        bits, block: of the grid.
    """

    kind: Literal["product", "lookup"]
    node: ir.Node
    role: str
    shape: tuple[int, int]
    bits: int
    block: int

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """What the codes stand for: float32 rows of ``[N, K]``, a piece after the other, each with its first row."""
        rows, columns = self.shape
        step = max(1, CHUNK // columns)
        codes = _array(self.node.inputs[1 if self.kind == "product" else 0])
        codes = codes.reshape(rows, -1)
        scale = _array(self.node.inputs[2]).reshape(rows, -1)
        zero = np.float32(1 << (self.bits - 1))
        for start in range(0, rows, step):
            part = unpack(codes[start : start + step], self.bits, columns).astype(np.float32) - zero
            wide = np.repeat(scale[start : start + step].astype(np.float32), self.block, axis=1)[:, :columns]
            yield start, part * wide


def coded_nodes(graph: ir.Graph) -> list[Coded] | str:
    """All of a graph's quantized weights in graph order; or what about them is not known here."""
    found = []
    for node in graph:
        one = _coded(node)
        if isinstance(one, str):
            return one
        if one is not None:
            found.append(one)
    return found


def _coded(node: ir.Node) -> Coded | str | None:
    if (node.domain, node.op_type) == (MICROSOFT, "MatMulNBits"):
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            return f"{node.name} has zero points"
        shape = (node.attributes["N"].as_int(), node.attributes["K"].as_int())
        return Coded(
            "product",
            node,
            role_of(node),
            shape,
            attribute(node, "bits", 4),
            attribute(node, "block_size", 32),
        )
    if (node.domain, node.op_type) == (MICROSOFT, "GatherBlockQuantized"):
        codes, bits = node.inputs[0], attribute(node, "bits", 4)
        if codes is None or codes.shape is None or len(node.inputs) > 3 or codes.dtype != ir.DataType.UINT8:
            return f"{node.name} has zero points, or codes of another type"
        rows, *packed = codes.shape.numpy()
        columns = int(np.prod(packed)) * 8 // bits
        return Coded("lookup", node, role_of(node), (rows, columns), bits, attribute(node, "block_size", 128))
    if node.op_type in OTHERS:
        return f"{node.name} is a {node.op_type}, whose weights are not read here"
    return None


def _array(value: ir.Value | None) -> np.ndarray:
    """An initializer's numbers, through the cast that widens them."""
    assert value is not None
    node = value.producer()
    if node is not None and node.op_type in ("Cast", "Unsqueeze"):
        return _array(node.inputs[0])
    assert value.const_value is not None, f"{value.name} is computed"
    return value.const_value.numpy()
